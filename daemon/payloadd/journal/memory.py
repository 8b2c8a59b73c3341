"""The journal of ``DURABILITY=memory``: it keeps nothing.

A request is answered once its jobs are queued, and a full queue refuses requests. A crash loses
the queued payloads. A batch that the store refuses for good is lost, too.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from payloadd.errors import KeyReusedError, RefusedError, TooLargeError
from payloadd.journal.fingerprint import fingerprint
from payloadd.journal.key_clock import KEEP, uptime
from payloadd.model.job import Job
from payloadd.model.streams import DEFAULT, first_seq

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from payloadd.journal.api import JournalListener, OutcomeCallback, Receipt
    from payloadd.model.job import Batch, Part

MOST_KEYS: Final = 100_000
"""Idempotency-Keys that are known at a time; a new key replaces the oldest one."""


class MemoryJournal:
    """Pass jobs on to the queue and keep none of them; see the protocol ``Journal``."""

    durable = False

    def __init__(
        self,
        listener: JournalListener,
        most_keys: int = MOST_KEYS,
        read_uptime: Callable[[], int] | None = None,
    ) -> None:
        """Report to ``listener``; ``read_uptime`` returns milliseconds since boot, for tests."""
        self._listener = listener
        self._most_keys = most_keys
        self._following: dict[int, int] = {}
        """The ``seq`` of the next job of each stream that had one."""
        self._uptime = read_uptime or uptime
        self._receipts: OrderedDict[bytes, tuple[Receipt, bytes, int]] = OrderedDict()
        """By key: receipt and fingerprint of its request, and when it expires; oldest first."""

    def append(
        self,
        receipt: Receipt,
        parts: Sequence[Part],
        key: bytes | None,
        done: OutcomeCallback,
        stream: int = DEFAULT,
        *,
        marks: bytes | None = None,
    ) -> None:
        """Queue the jobs of a request and call ``done`` before this returns.

        Raises RefusedError (QUEUE_FULL) if the queue has no room for all of them now, and
        TooLargeError if it never has.
        """
        if key is not None and (known := self._known(key)) is not None:
            same = known[1] == (marks or fingerprint(parts))
            done(known[0] if same else KeyReusedError())
            return
        self._check_room(parts)
        self._listener.accepted(receipt.payloads)
        if stream != DEFAULT:
            self._listener.accepted_in(stream, receipt.payloads)
        self._listener.committed(self._numbered(parts, stream))
        if key is not None and receipt.payloads:
            expires = self._uptime() + KEEP * 1000
            self._receipts[key] = (receipt, marks or fingerprint(parts), expires)
            if len(self._receipts) > self._most_keys:
                self._receipts.popitem(last=False)
        done(receipt)

    def _numbered(self, parts: Sequence[Part], stream: int) -> list[Job]:
        """Return the parts of a request as the next jobs of a stream."""
        first = self._following.get(stream) or first_seq(stream) + 1
        self._following[stream] = first + len(parts)
        return [Job(seq, *part) for seq, part in enumerate(parts, first)]

    def _known(self, key: bytes) -> tuple[Receipt, bytes, int] | None:
        """Return the receipt and the fingerprint of a key that has not expired, or None."""
        known = self._receipts.get(key)
        if known is not None and known[2] <= self._uptime():
            del self._receipts[key]
            return None
        return known

    def _check_room(self, parts: Sequence[Part]) -> None:
        size = sum(len(part.lines) for part in parts)
        most = self._listener.queue_bytes
        if size > most:
            raise TooLargeError(f"the request has {size} bytes, more than MAX_QUEUE_BYTES ({most})")
        if not self._listener.has_room(len(parts), size):
            raise self._queue_full()

    async def wait_for_room(self) -> None:
        """Return at once: no request waits in this journal."""

    def refusal(self) -> RefusedError | None:
        """Return the error that a request of one small payload would get now, or None."""
        return None if self._listener.has_room(1, 1) else self._queue_full()

    def _queue_full(self) -> RefusedError:
        # The time for half of the queue: the client finds enough room then, and the workers still
        # have work.
        wait = self._listener.seconds_for(self._listener.open_payloads // 2)
        return RefusedError("QUEUE_FULL", "the queue is full; nothing was accepted", wait)

    async def seal(self, batch: Batch) -> None:
        """Return at once: no batch is uploaded again after a crash."""

    def settle(self, batch: Batch) -> None:
        """Do nothing: no batch is kept."""

    def bury(self, batch: Batch, code: str, reason: str) -> None:  # noqa: ARG002 - the protocol's
        """Report the payloads as discarded: this journal keeps no dead letters."""
        self._listener.discarded(batch.payloads)

    async def page(self, after: int, most_jobs: int, most_bytes: int) -> list[Job]:  # noqa: ARG002 - the protocol's
        """Return no jobs: all accepted jobs are in the queue."""
        return []

    async def pulse(self) -> None:
        """Return at once: a request waits for nothing."""

    async def sealed(self) -> Batch | None:
        """Return None: no batch survives a process."""
        return None
