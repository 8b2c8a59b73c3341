"""The journal of ``DURABILITY=store``: the store itself. Nothing is on the disk.

A request is queued as with ``DURABILITY=memory``, but it is answered when the store has all of its
payloads. A process that ends at any moment loses only requests that had no answer, and those were
not promised. So there are no seals, no dead letters and nothing to read back.

A request ends in one of three ways, each once:

* The store has confirmed its last object: the answer has the keys of its objects.
* The store has not confirmed all of it within REQUEST_TIMEOUT: STORE_UNAVAILABLE. What is left of
  the request in memory is given up (``given_up``); a part of it may be in the store.
* The store has refused one of its objects for good: STORE_REFUSED.

Idempotency-Keys are known to this process alone. A repetition joins its original while that runs,
and gets the same answer. The key of a request that failed is forgotten, as nothing was promised.

Thousands of requests may wait for one object. Their answers are sent by a task, a few milliseconds
at a time, so that they do not hold the event loop. Times are of trio's clock.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from itertools import takewhile
from time import perf_counter
from typing import TYPE_CHECKING, Final

import trio

from payloadd.errors import KeyReusedError, RefusedError, StoreRefusedError
from payloadd.journal.fingerprint import fingerprint
from payloadd.journal.key_clock import KEEP
from payloadd.journal.memory import MOST_KEYS as MOST_KNOWN_KEYS
from payloadd.journal.memory import MemoryJournal
from payloadd.journal.unstored_request import (
    KeptRequest,
    StoredRequest,
    UnstoredRequest,
    forget_outcome,
)
from payloadd.model.stored_objects import StoredObjects
from payloadd.model.streams import DEFAULT
from payloadd.observe.status import JournalFigures

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from payloadd.journal.api import JournalListener, OutcomeCallback, Receipt, StoreOutcome
    from payloadd.model.job import Batch, Job, Part
    from payloadd.observe.health import Health
    from payloadd.observe.status import Trouble

_PART: Final = "store"
_TICK: Final = 0.1
"""Seconds between two looks for requests whose time is over."""
_TIME_SLICE: Final = 0.002
"""Seconds of answers, after which other tasks run."""
_ANSWERS: Final = 8
"""Answers after which the clock is read."""
_GIVEN_UP: Final = 1000
"""Requests that are given up before other tasks run."""
_DOWN_AFTER: Final = 2.0
"""Seconds without a stored object after which a store in trouble counts as down: while some uploads
fail and others succeed, another daemon would do no better."""
_RETRY_AFTER: Final = 5
"""Seconds for Retry-After."""
_MOST_JOINED: Final = 10_000
"""Repetitions that wait for a running request, all together; clients may close their connections
meanwhile, so the number of connections is no bound."""
_MOST_OBJECTS: Final = 200_000
"""Keys of objects that are kept for repetitions, of all Idempotency-Keys together."""


class StoreJournal(MemoryJournal):
    """Answer requests when the store has them; see ``Journal`` and ``UnstoredRequests``."""

    def __init__(
        self,
        listener: JournalListener,
        health: Health,
        seconds: float,
        most_keys: int = MOST_KNOWN_KEYS,
        read_uptime: Callable[[], int] | None = None,
    ) -> None:
        """Give requests up after ``seconds``; the trouble of the store is in ``health``."""
        super().__init__(listener, most_keys, read_uptime)
        self._health = health
        self._waits = max(_TICK, seconds - 2 * _TICK)
        """Seconds from the last tick to the one that gives a request up."""
        self.given_up: Callable[[], object] = _ignore
        """Called after requests were given up: their jobs are in memory for nothing."""
        # Bounded by the jobs that the queue holds.
        self._jobs: dict[int, UnstoredRequest] = {}
        """The requests by the ids of their jobs that are not stored, the oldest first."""
        self._current: UnstoredRequest | None = None
        """The request of the receipt that ``append`` passes to its callback; None: it is stored."""
        self._current_stored: StoredRequest | None = None
        """The request then."""
        self._running: dict[bytes, KeptRequest] = {}
        """Requests with a key that are not stored."""
        self._known_keys: OrderedDict[bytes, StoredRequest] = OrderedDict()
        """Stored requests with a key, the oldest first."""
        self._objects_kept = 0
        self._joined = 0
        self._answers: deque[tuple[UnstoredRequest, StoreOutcome]] = deque()
        self._answer_due = trio.Event()
        self._job_came = trio.Event()
        self._now = -math.inf
        """The time of the last tick: to read the clock for each request was measurable."""
        self._last_due = math.inf
        self._last_stored = -math.inf

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
        """Queue the jobs of a request, and call ``done`` before this returns.

        ``done`` calls ``wait`` then. Raises RefusedError (QUEUE_FULL, STORE_UNAVAILABLE) if the
        queue has no room for all jobs now, and TooLargeError if it never has.
        """
        if key is not None:
            marks = marks or fingerprint(parts)
            if self._join(key, marks, done):
                return
        count = len(parts)
        if not count:
            self._pass_stored(StoredRequest(receipt, StoredObjects([], 0)), done)
            return
        self._check_room(parts)
        if not self._jobs:
            self._now = trio.current_time()
            self._job_came.set()
        due, first = self._now + self._waits, receipt.id.int
        if count == 1 and key is None:
            self._jobs[first] = request = UnstoredRequest(receipt, due)
        else:
            request = kept = KeptRequest(receipt, due, count, key, marks or b"")
            self._jobs.update(dict.fromkeys(range(first, first + count), request))
            if key is not None:
                self._running[key] = kept
        self._listener.taken(receipt.payloads)
        self._listener.committed(self._numbered(parts, stream))
        self._current = request
        done(receipt)

    def _join(self, key: bytes, marks: bytes, done: OutcomeCallback) -> bool:
        """Answer a request whose key is known as its original, and return whether it is."""
        running = self._running.get(key)
        kept = self._kept(key)
        if running is not None:
            if running.marks != marks:
                done(KeyReusedError())
                return True
            if self._joined >= _MOST_JOINED:
                raise self._queue_full()
            self._current = running
            done(running.receipt)
        elif kept is not None:
            if kept.marks == marks:
                self._pass_stored(kept, done)
            else:
                done(KeyReusedError())
        return running is not None or kept is not None

    def _pass_stored(self, request: StoredRequest, done: OutcomeCallback) -> None:
        """Pass the receipt of a request that is stored."""
        self._current, self._current_stored = None, request
        done(request.receipt)

    def _kept(self, key: bytes) -> StoredRequest | None:
        """Return the stored request of a key; None if the key is not known any more."""
        kept = self._known_keys.get(key)
        if kept is not None and kept.expires <= self._uptime():
            self._forget(key)
            return None
        return kept

    def wait(self, done: Callable[[Receipt, StoreOutcome], object]) -> None:
        """Call ``done`` with the outcome of the request of which ``append`` passes the receipt."""
        request = self._current
        if request is not None and request.waiter is forget_outcome:
            request.waiter = done
        elif isinstance(request, KeptRequest):
            request.joined.append(done)
            self._joined += 1
        elif self._current_stored is not None:
            done(self._current_stored.receipt, self._current_stored.objects)

    def wants(self, job: Job) -> bool:
        """Return whether the request of ``job`` waits for it."""
        return job.id.int in self._jobs

    def settle(self, batch: Batch) -> None:
        """Answer the requests of which the last payloads are stored now."""
        self._last_stored = trio.current_time()
        jobs, key = self._jobs, batch.key
        objects = StoredObjects([key], 0)  # of all requests that are in this object alone
        payloads = 0
        for job in batch.jobs:
            number = job.id.int
            request = jobs.pop(number, None)
            if request is None:
                continue  # given up
            found = objects
            if isinstance(request, KeptRequest):
                if not request.store(number, key):
                    continue
                found = request.objects()
                if request.key is not None:
                    self._remember(request.key, request, found)
            payloads += request.receipt.payloads
            self._answers.append((request, found))
        if payloads:
            self._listener.acknowledged(batch.jobs[0].seq, payloads)
        if self._answers:
            self._answer_due.set()

    def _remember(self, key: bytes, request: KeptRequest, objects: StoredObjects) -> None:
        self._running.pop(key, None)
        expires = self._uptime() + KEEP * 1000
        self._known_keys[key] = StoredRequest(request.receipt, objects, request.marks, expires)
        self._objects_kept += len(objects.keys)
        while len(self._known_keys) > self._most_keys or self._objects_kept > _MOST_OBJECTS:
            self._forget(next(iter(self._known_keys)))

    def _forget(self, key: bytes) -> None:
        self._objects_kept -= len(self._known_keys.pop(key).objects.keys)

    def bury(self, batch: Batch, code: str, reason: str) -> None:  # noqa: ARG002 - the protocol's
        """Refuse the requests that have payloads in a batch which the store does not take."""
        error = StoreRefusedError(code)
        for job in batch.jobs:
            request = self._jobs.get(job.id.int)
            if request is not None:
                self._fail(request, error)

    def _fail(self, request: UnstoredRequest, error: RefusedError) -> None:
        first = request.receipt.id.int
        if isinstance(request, KeptRequest):
            for number in range(first, first + request.count):
                self._jobs.pop(number, None)
            if request.key is not None:
                self._running.pop(request.key, None)
        else:
            del self._jobs[first]
        self._answers.append((request, error))
        self._answer_due.set()

    # --- the tasks --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Answer requests until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_answers)
            nursery.start_soon(self._give_up_overdue)

    async def _send_answers(self) -> None:
        answers = self._answers
        while True:
            await self._answer_due.wait()
            end = perf_counter() + _TIME_SLICE
            self._send_some(min(_ANSWERS, len(answers)))
            while answers and perf_counter() < end:
                self._send_some(min(_ANSWERS, len(answers)))
            if not answers:
                self._answer_due = trio.Event()
            await trio.lowlevel.checkpoint()

    def _send_some(self, count: int) -> None:
        for _ in range(count):
            request, outcome = self._answers.popleft()
            request.answer(outcome)
            if isinstance(request, KeptRequest):
                self._joined -= len(request.joined)

    async def _give_up_overdue(self) -> None:
        while True:
            if not self._jobs:
                self._job_came = trio.Event()
                await self._job_came.wait()
            await trio.sleep(_TICK)
            self._now = trio.current_time()
            if overdue := self._overdue(self._now):
                await self._give_up(overdue)

    def _overdue(self, now: float) -> list[tuple[int, UnstoredRequest]]:
        """Return the jobs whose requests have waited long enough; the oldest requests end first."""
        if self._last_due <= now:
            return list(self._jobs.items())
        return list(takewhile(lambda entry: entry[1].due <= now, self._jobs.items()))

    async def _give_up(self, overdue: list[tuple[int, UnstoredRequest]]) -> None:
        """Refuse the requests of these jobs, a few milliseconds at a time."""
        error = self._unavailable("has not confirmed the payloads in time")
        for count, (number, request) in enumerate(overdue, 1):
            if self._jobs.get(number) is request:
                self._fail(request, error)
            if not count % _GIVEN_UP:
                await trio.lowlevel.checkpoint()
        self.given_up()

    def wait_no_longer_than(self, seconds: float) -> None:
        """Give up all requests, also later ones, ``seconds`` from now: the daemon drains."""
        self._last_due = trio.current_time() + seconds

    # --- figures and refusals ---------------------------------------------------------------------

    def figures(self) -> JournalFigures:
        """Return the content for a snapshot of the process: known keys, and nothing else."""
        return JournalFigures(idempotency_keys=len(self._running) + len(self._known_keys))

    def refusal(self) -> RefusedError | None:
        """Return the error that a request would probably get now, or None.

        A store in trouble that has taken nothing for some seconds is down. Requests are accepted
        all the same, as far as memory allows: they see first that the store works again.
        """
        if self._trouble is not None and trio.current_time() > self._last_stored + _DOWN_AFTER:
            return self._unavailable("does not work")
        return super().refusal()

    def _queue_full(self) -> RefusedError:
        if self._trouble is None:
            return super()._queue_full()
        return self._unavailable("does not work, and the queue is full")

    @property
    def _trouble(self) -> Trouble | None:
        return self._health.trouble(_PART)

    def _unavailable(self, what: str) -> RefusedError:
        trouble = self._trouble
        cause = "" if trouble is None else f" ({trouble.code})"
        detail = (
            f"the store {what}{cause}; this request is not accepted, but a part of it may be in"
            " the store"
        )
        return RefusedError("STORE_UNAVAILABLE", detail, _RETRY_AFTER)


def _ignore() -> None:
    """Do nothing: no part has jobs in memory yet."""
