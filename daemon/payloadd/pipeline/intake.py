"""The one door into the pipeline."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import trio

from payloadd.errors import RefusedError, TooLargeError
from payloadd.journal.api import Done, Receipt
from payloadd.model.job import Buffer, IdSource, Part, split, split_lines, uuid_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.config.settings import Settings
    from payloadd.journal.api import Journal
    from payloadd.observe.health import Health

__all__ = ["Buffer", "Done", "Intake", "Receipt"]

_AFTER_DRAIN = 5
"""Seconds after which a restarted daemon usually listens again."""


class Intake:
    """Takes requests, whole or not at all."""

    def __init__(self, journal: Journal, health: Health, settings: Settings) -> None:
        self._journal = journal
        self._health = health
        self._most_payloads = settings.batch_max_payloads
        self._most_bytes = settings.batch_max_bytes
        self._most_jobs = settings.max_queue
        self._ids = IdSource()

    @property
    def durable(self) -> bool:
        """Whether accepted payloads survive the end of the process."""
        return self._journal.durable

    async def accept(self, payloads: Sequence[Buffer], key: str | None = None) -> Receipt:
        """Take all payloads of one request and return what to answer it with.

        The same as ``submit`` for a task that waits. Whoever is cancelled meanwhile has not
        taken the request back.
        """
        answered = trio.Event()
        outcomes: list[Receipt | RefusedError] = []

        def done(outcome: Receipt | RefusedError) -> None:
            outcomes.append(outcome)
            answered.set()

        self.submit(payloads, key, done)
        await answered.wait()
        (outcome,) = outcomes
        if isinstance(outcome, RefusedError):
            raise outcome
        return outcome

    def submit(self, payloads: Sequence[Buffer], key: str | None, done: Done) -> None:
        """Take all payloads of one request; ``done`` is called with what to answer it with.

        ``key`` is the request's Idempotency-Key: within 24 h the same one gets the first
        receipt again, and nothing is stored twice. ``done`` is called after the commit
        (``DURABILITY=disk``), and hears a RefusedError if that failed. Raises at once
        RefusedError: QUEUE_FULL, JOURNAL_FULL, DISK_ERROR; and TooLargeError for what could
        never be taken. Nothing was taken then.
        """
        groups = split(payloads, self._most_payloads, self._most_bytes)
        if len(groups) == 1:
            id_ = uuid_of(self._ids.reserve(1))
            parts = [Part(id_, b"\n".join([*payloads, b""]), len(payloads))]
        else:
            self._check_number(len(groups))
            # The answer is named by its first job; an empty collection gets an id too.
            id_, *more = self._ids.take(max(1, len(groups)))
            parts = [
                Part(each, b"\n".join([*group, b""]), len(group))
                for each, group in zip([id_, *more], groups, strict=False)
            ]
        receipt = Receipt(id_, len(payloads))
        self._journal.append(receipt, parts, None if key is None else _hash(key), done)

    async def submit_lines(
        self, text: bytes, sizes: Sequence[int], key: str | None, done: Done
    ) -> None:
        """Do the same with payloads that are NDJSON, however many, without holding the loop.

        ``sizes`` are the bytes of each payload without its line feed. Raises as ``submit``.
        """
        await self._journal.wait_for_room()
        groups = await trio.to_thread.run_sync(
            split_lines, text, sizes, self._most_payloads, self._most_bytes
        )
        self._check_number(len(groups))
        first = self._ids.reserve(max(1, len(groups)))
        parts = await trio.to_thread.run_sync(_parts, first, groups)
        receipt = Receipt(uuid_of(first), len(sizes))
        self._journal.append(receipt, parts, None if key is None else _hash(key), done)

    def _check_number(self, jobs: int) -> None:
        if jobs > self._most_jobs:
            raise TooLargeError(
                f"the request makes {jobs} objects, more than MAX_QUEUE ({self._most_jobs})"
            )

    def refusal(self) -> RefusedError | None:
        """Return what a request of one small payload would be refused with now, or None."""
        if self._health.phase == "draining":
            return RefusedError("DRAINING", "the daemon is shutting down", _AFTER_DRAIN)
        return self._journal.refusal()


def _parts(first: int, groups: Sequence[tuple[bytes, int]]) -> list[Part]:
    return [
        Part(uuid_of(id_), lines, count) for id_, (lines, count) in enumerate(groups, start=first)
    ]


def _hash(key: str) -> bytes:
    """Return 16 bytes for a key of up to 255: the table of keys stays small."""
    return hashlib.blake2b(key.encode(), digest_size=16).digest()
