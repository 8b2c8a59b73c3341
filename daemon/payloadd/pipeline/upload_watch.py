"""Tell requests in which objects their payloads are, once the store has confirmed all of them.

A request that wants to know is watched from before its commit on, because an object may be stored
before the answer is due. The ids of its jobs are consecutive and never change, so they identify its
jobs also in a batch that the journal has returned.

The number of watched jobs is bounded. Requests with an Idempotency-Key stay known after their
answer, so that a repetition gets the same answer; they are forgotten for others, the oldest first.
While no request is watched, ``jobs`` is empty, and nothing else is done for a batch.

Times are of trio's clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from payloadd.model.stored_objects import MOST_KEYS, StoredObjects

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.journal.api import Receipt
    from payloadd.model.job import Batch

__all__ = ["MOST_KEYS", "StoredObjects", "UploadWatch"]

_MOST_JOBS: Final = 20_000
"""Jobs of all watched and remembered requests together: about 10 MiB."""
_TICK: Final = 0.1
"""Seconds by which an answer may be late."""


class _Waiter(NamedTuple):
    """A request that waits: when it gives up, and the function that answers it."""

    due: float
    done: Callable[[StoredObjects | None], object]


class _WatchedRequest:
    """A request, and the objects of its jobs that are stored."""

    __slots__ = ("count", "first", "keys", "left", "objects", "remembered", "waiters")

    def __init__(self, first: int, count: int, *, remembered: bool) -> None:
        self.first = first
        """The number of its first job's id."""
        self.count = count
        """Its jobs."""
        self.left = count
        """Jobs that are not stored yet."""
        self.objects = 0
        self.keys: dict[int, str] = {}
        """Keys by the position of the first job that is in the object."""
        self.remembered = remembered
        """Whether it stays known after its answer."""
        self.waiters: list[_Waiter] = []

    def stored(self) -> StoredObjects:
        keys = [key for _, key in sorted(self.keys.items())]
        return StoredObjects(keys, self.objects - len(keys))


class UploadWatch:
    """The watched requests; ``most_jobs`` bounds their jobs."""

    def __init__(self, most_jobs: int = _MOST_JOBS) -> None:
        self._most_jobs = most_jobs
        self.jobs: dict[int, _WatchedRequest] = {}
        """The requests by the ids of their jobs that are not stored yet."""
        self.waiting = 0
        """Requests that wait for their answer."""
        self._requests: dict[int, _WatchedRequest] = {}
        """All requests by the id of their receipt."""
        self._size = 0
        """Jobs of all requests, stored ones included; a request counts as one at least."""
        self._busy: dict[_WatchedRequest, None] = {}
        """Requests for which an answer waits."""
        self._idle: dict[_WatchedRequest, None] = {}
        """Requests for which no answer waits, the oldest first: these may be forgotten."""
        self._ended = False
        self._last_due = float("inf")
        self._changed = trio.Event()

    def watch(self, receipt: Receipt, jobs: int, *, remembered: bool) -> bool:
        """Begin to watch a request before its commit; return False if there is no room for it.

        ``remembered``: it has an Idempotency-Key, and stays known after its answer. The ids of the
        jobs have the numbers from that of ``receipt.id`` on.
        """
        size = max(1, jobs)
        while self._idle and self._size + size > self._most_jobs:
            self._forget(next(iter(self._idle)))
        if self._size + size > self._most_jobs:
            return False
        first = receipt.id.int
        request = self._requests[first] = _WatchedRequest(first, jobs, remembered=remembered)
        self._size += size
        self.jobs.update(dict.fromkeys(range(first, first + jobs), request))
        return True

    def unwatch(self, receipt: Receipt) -> None:
        """Forget a request that was not accepted, or that repeats another one."""
        request = self._requests.get(receipt.id.int)
        if request is not None:
            self._forget(request)

    def answered(self, receipt: Receipt) -> None:
        """Note that a request is accepted, and may be forgotten if ``wait`` was not called."""
        request = self._requests.get(receipt.id.int)
        if request is not None and not request.waiters:
            self._leave(request)

    def wait(
        self, receipt: Receipt, seconds: float, done: Callable[[StoredObjects | None], object]
    ) -> None:
        """Call ``done`` with the objects of a request once all of its payloads are stored.

        It is called with None after ``seconds``, if the store refuses a part of the payloads for
        good, and if the request is not known; before this returns if nothing is to wait for. It
        must not raise.
        """
        request = self._requests.get(receipt.id.int)
        due = min(trio.current_time() + seconds, self._last_due)
        if request is None or not (request.left == 0 or seconds > 0) or self._ended:
            done(None)
        elif request.left == 0:
            done(request.stored())
        else:
            self._idle.pop(request, None)
            self._busy[request] = None
            request.waiters.append(_Waiter(due, done))
            self.waiting += 1
            self._changed.set()

    def end_wait(self, receipt: Receipt, done: Callable[[StoredObjects | None], object]) -> None:
        """Call ``done``, which ``wait`` was called with, with None unless it has been called."""
        request = self._requests.get(receipt.id.int)
        ended = [] if request is None else [one for one in request.waiters if one.done is done]
        if request is not None and ended:
            request.waiters = [one for one in request.waiters if one.done is not done]
            self._call(request, ended, None)

    def store(self, batch: Batch) -> None:
        """Note that a batch is stored."""
        for request, position in self._members(batch).items():
            request.objects += 1
            if position < MOST_KEYS:
                request.keys[position] = batch.key
            if request.left == 0:
                self._answer(request, request.stored())

    def bury(self, batch: Batch) -> None:
        """Note that the store has refused a batch for good."""
        for request in self._members(batch):
            request.remembered = False
            self._answer(request, None)
            self._forget(request)

    async def run(self) -> None:
        """Answer requests that have waited long enough, until cancelled."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            while self.waiting:
                await trio.sleep(_TICK)
                self._answer_due(trio.current_time())

    def wait_no_longer_than(self, seconds: float) -> None:
        """Bound all waits, also later ones, to ``seconds`` from now: the daemon drains."""
        self._last_due = trio.current_time() + seconds
        for request in self._busy:
            request.waiters = [
                _Waiter(min(due, self._last_due), done) for due, done in request.waiters
            ]

    def end(self) -> None:
        """Answer all requests that wait: no further batch will be stored."""
        self._ended = True
        self._answer_due(float("inf"))

    def _members(self, batch: Batch) -> dict[_WatchedRequest, int]:
        """Return the watched requests of a batch, and the first of its jobs of each."""
        found: dict[_WatchedRequest, int] = {}
        for job in batch.jobs:
            number = job.id.int
            request = self.jobs.pop(number, None)
            if request is not None:
                request.left -= 1
                found.setdefault(request, number - request.first)
        return found

    def _answer_due(self, now: float) -> None:
        for request in list(self._busy):
            late = [waiter for waiter in request.waiters if waiter.due <= now]
            if late:
                request.waiters = [waiter for waiter in request.waiters if waiter.due > now]
                self._call(request, late, None)

    def _answer(self, request: _WatchedRequest, objects: StoredObjects | None) -> None:
        waiters, request.waiters = request.waiters, []
        if waiters:
            self._call(request, waiters, objects)

    def _call(
        self, request: _WatchedRequest, waiters: list[_Waiter], objects: StoredObjects | None
    ) -> None:
        self.waiting -= len(waiters)
        # Before the calls: an answer may lead to the next request of its connection, and here.
        if not request.waiters:
            self._leave(request)
        for waiter in waiters:
            waiter.done(objects)

    def _leave(self, request: _WatchedRequest) -> None:
        """Keep a request without waiters for repetitions, or forget it."""
        self._busy.pop(request, None)
        if request.remembered:
            self._idle[request] = None
        else:
            self._forget(request)

    def _forget(self, request: _WatchedRequest) -> None:
        if self._requests.pop(request.first, None) is None:
            return
        self._idle.pop(request, None)
        self._busy.pop(request, None)
        self._size -= max(1, request.count)
        if request.left:
            for number in range(request.first, request.first + request.count):
                self.jobs.pop(number, None)
