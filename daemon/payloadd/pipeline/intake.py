"""Accept requests into the pipeline; no other module does."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import trio

from payloadd.errors import RefusedError, TooLargeError
from payloadd.journal.api import OutcomeCallback, Receipt, StoreOutcome, fingerprint
from payloadd.model.job import Part, PayloadBytes, split, split_lines, uuid_of
from payloadd.model.streams import DEFAULT
from payloadd.pipeline.in_flight import Uncounted
from payloadd.pipeline.upload_watch import MOST_KEYS, StoredObjects, UploadWatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.config.settings import Settings
    from payloadd.journal.api import Journal, UnstoredRequests
    from payloadd.model.envelope import Envelope
    from payloadd.observe.health import Health
    from payloadd.pipeline.in_flight import InFlight

__all__ = [
    "MOST_KEYS",
    "Intake",
    "OutcomeCallback",
    "PayloadBytes",
    "Receipt",
    "StoreOutcome",
    "StoredObjects",
]

_AFTER_DRAIN = 5
"""Seconds after which a restarted daemon usually listens again."""


class Intake:
    """Accept requests, each whole or not at all."""

    def __init__(
        self,
        journal: Journal,
        health: Health,
        settings: Settings,
        uploads: UploadWatch | None = None,
        unstored: UnstoredRequests | None = None,
        in_flight: InFlight | Uncounted | None = None,
    ) -> None:
        """Append to ``journal``; ``uploads`` watches requests, and is that of the accounting.

        ``unstored`` are the requests that the journal answers when they are stored; None: it
        answers when they are accepted. ``in_flight`` counts requests without an outcome, and has
        the source of ids.
        """
        self._journal = journal
        self._in_flight = Uncounted() if in_flight is None else in_flight
        self._append = self._in_flight.counting(journal.append)
        self._health = health
        self._max_payloads = settings.batch_max_payloads
        self._max_bytes = settings.batch_max_bytes
        self._max_jobs = settings.max_queue
        self._ids = self._in_flight.ids
        self.uploads = UploadWatch() if uploads is None else uploads
        self.unstored = unstored
        """The requests that wait for the store, if each request does (``DURABILITY=store``)."""
        self._watch = self._append_watched if unstored is None else self._append

    @property
    def durable(self) -> bool:
        """Whether payloads that were answered with a 2xx survive the end of the process."""
        return self._journal.durable or self.unstored is not None

    async def accept(
        self, payloads: Sequence[PayloadBytes], key: str | None = None, stream: int = DEFAULT
    ) -> Receipt:
        """Accept all payloads of one request; return the receipt once they are durable.

        Raises RefusedError, KeyReusedError and TooLargeError, where ``submit`` reports or raises
        them. A cancellation during the wait does not withdraw the request.
        """
        answered = trio.Event()
        outcomes: list[Receipt | RefusedError] = []

        def done(outcome: Receipt | RefusedError) -> None:
            outcomes.append(outcome)
            answered.set()

        self.submit(payloads, key, done, stream)
        await answered.wait()
        (outcome,) = outcomes
        if isinstance(outcome, Receipt):
            return outcome
        raise outcome

    def submit(
        self,
        payloads: Sequence[PayloadBytes],
        key: str | None,
        done: OutcomeCallback,
        stream: int = DEFAULT,
        *,
        envelope: Envelope | None = None,
        watch: bool = False,
    ) -> None:
        """Accept all payloads of one request into a stream; ``done`` is called with the receipt.

        ``key`` is the request's Idempotency-Key: a second request with the same key within 24 h
        gets the receipt of the first, and nothing is stored twice; with other payloads it gets a
        KeyReusedError. ``done`` is called after the commit (``DURABILITY=disk``), with a
        RefusedError if the commit failed. The payloads are stored in ``envelope``. With ``watch``,
        ``done`` may call ``uploads.wait`` with the receipt.

        Raises RefusedError (QUEUE_FULL, JOURNAL_FULL, DISK_ERROR), or TooLargeError if the request
        could never be accepted. Then no payload was accepted, and ``done`` is not called.
        """
        if envelope is not None:
            groups = split(payloads, self._max_payloads, self._max_bytes, envelope.size)
        else:
            groups = split(payloads, self._max_payloads, self._max_bytes)
        if len(groups) == 1:
            id_ = uuid_of(self._ids.reserve(1))
            lines = envelope.lines(payloads) if envelope else b"\n".join([*payloads, b""])
            parts = [Part(id_, lines, len(payloads))]
        else:
            self._check_job_count(len(groups))
            # The id of the receipt is that of the first job; an empty collection gets an id too.
            id_, *more = self._ids.new_ids(max(1, len(groups)))
            parts = [
                Part(
                    each,
                    envelope.lines(group) if envelope else b"\n".join([*group, b""]),
                    len(group),
                )
                for each, group in zip([id_, *more], groups, strict=False)
            ]
        marks = None
        if envelope is not None and key is not None:
            marks = fingerprint([Part(id_, b"\n".join([*payloads, b""]), len(payloads))])
        receipt = Receipt(id_, len(payloads))
        append = self._watch if watch else self._append
        append(receipt, parts, None if key is None else _hash(key), done, stream, marks=marks)

    async def submit_lines(
        self,
        text: bytes,
        sizes: Sequence[int],
        key: str | None,
        done: OutcomeCallback,
        stream: int = DEFAULT,
        *,
        envelope: Envelope | None = None,
        watch: bool = False,
    ) -> None:
        """Accept any number of payloads, as ``submit`` does, without blocking the event loop.

        ``text`` is NDJSON, ``sizes`` are the bytes of each payload without its line feed.
        """
        await self._journal.wait_for_room()
        more = 0 if envelope is None else envelope.size
        groups = await trio.to_thread.run_sync(
            split_lines, text, sizes, self._max_payloads, self._max_bytes, more
        )
        self._check_job_count(len(groups))
        with self._in_flight.preparing():
            first = self._ids.reserve(max(1, len(groups)))
            parts = await trio.to_thread.run_sync(_parts, first, groups)
            marks = None
            if envelope is not None:
                if key is not None:
                    marks = await trio.to_thread.run_sync(fingerprint, parts)
                parts = await trio.to_thread.run_sync(_wrapped, parts, envelope)
            receipt = Receipt(uuid_of(first), len(sizes))
            append = self._watch if watch else self._append
            append(receipt, parts, None if key is None else _hash(key), done, stream, marks=marks)

    def _append_watched(
        self,
        receipt: Receipt,
        parts: Sequence[Part],
        key: bytes | None,
        done: OutcomeCallback,
        stream: int = DEFAULT,
        *,
        marks: bytes | None = None,
    ) -> None:
        """Append a request, and watch its uploads if there is room for that."""
        if not self.uploads.watch(receipt, len(parts), remembered=key is not None):
            self._append(receipt, parts, key, done, stream, marks=marks)
            return
        try:
            watching = self._watching(receipt, done)
            self._append(receipt, parts, key, watching, stream, marks=marks)
        except BaseException:
            self.uploads.unwatch(receipt)
            raise

    def _watching(self, receipt: Receipt, done: OutcomeCallback) -> OutcomeCallback:
        """Return a callback that calls ``done`` and keeps ``uploads`` up to date."""

        def finish(outcome: Receipt | RefusedError) -> None:
            accepted = isinstance(outcome, Receipt) and outcome.id == receipt.id
            if not accepted:
                # Refused, or answered with the receipt of an earlier request.
                self.uploads.unwatch(receipt)
            done(outcome)
            if accepted:
                self.uploads.answered(receipt)

        return finish

    def wait_no_longer_than(self, seconds: float) -> None:
        """Let no request, also no later one, wait for the store for longer than ``seconds``."""
        self.uploads.wait_no_longer_than(seconds)
        if self.unstored is not None:
            self.unstored.wait_no_longer_than(seconds)

    def _check_job_count(self, jobs: int) -> None:
        if jobs > self._max_jobs:
            raise TooLargeError(
                f"the request makes {jobs} objects, more than MAX_QUEUE ({self._max_jobs})"
            )

    def refusal(self) -> RefusedError | None:
        """Return the error that would refuse a request of one small payload now, or None."""
        if self._health.phase == "draining":
            return RefusedError("DRAINING", "the daemon is shutting down", _AFTER_DRAIN)
        return self._journal.refusal()


def _parts(first: int, groups: Sequence[tuple[bytes, int]]) -> list[Part]:
    return [
        Part(uuid_of(id_), lines, count) for id_, (lines, count) in enumerate(groups, start=first)
    ]


def _wrapped(parts: Sequence[Part], envelope: Envelope) -> list[Part]:
    return [Part(id_, envelope.around_lines(lines), count) for id_, lines, count in parts]


def _hash(key: str) -> bytes:
    """Return 16 bytes for a key of up to 255 bytes, so that the table of keys stays small."""
    return hashlib.blake2b(key.encode(), digest_size=16).digest()
