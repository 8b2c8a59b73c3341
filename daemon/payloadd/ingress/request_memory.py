"""Bound the memory of all request bodies together (MAX_REQUEST_BYTES).

A body acquires its memory before its first byte is read, as much as its Content-Length announces:
if bodies acquired their memory in parts, all of them could wait for the rest for ever. The memory
is released with the answer. If there is none left, the request waits in the kernel's buffers,
unread but for its beginning (``read_ahead``), and after some seconds it is refused (503 BUSY). One
part of the bound is reserved for bodies of up to 64 KiB, and another part for bodies of up to 4
KiB: clients that announce much and send nothing cannot keep small requests out. No request waits
behind one of a larger class, which has less memory to wait for. While requests wait, the slowest
senders are refused to release memory for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL_BODY_BYTES: Final = 64 * 2**10
"""Bytes of a small body, which may use the reserved part."""
_TINY_BODY_BYTES: Final = 4 * 2**10
"""Bytes of a tiny body, which may use the whole bound."""
_RESERVE_DIVISOR: Final = 8
"""The reserved part is the bound divided by this number; half of it is for tiny bodies only."""
MAX_WAIT: Final = 5.0
"""Seconds that a request waits for memory before it is refused."""
_WAIT_BEFORE_EVICTION: Final = 0.5
"""Seconds that a request waits before slow senders are refused for it."""
_GRACE: Final = 1.0
"""Seconds after which the speed of a sender is known."""
_TICK: Final = 0.25
_READ_AHEAD: Final = 120 * 2**10
"""Bytes of the first read of a request: a POST of 64 KiB with its head fits. A larger buffer would
be above the threshold from which malloc(3) asks the system for memory."""
_SHORT_READ_AHEAD: Final = 8 * 2**10
"""The same while requests wait: a tiny body with its head fits."""


class Receiver(Protocol):
    """A request that has acquired its memory and receives its body."""

    @property
    def since(self) -> float:
        """Time at which it acquired its memory, on trio's clock."""
        ...

    @property
    def received(self) -> int:
        """Bytes of the body received so far."""
        ...

    def end_slow(self) -> None:
        """Refuse the request and release its memory: other requests wait for it."""
        ...


class Waiter:
    """A request that waits for memory."""

    __slots__ = ("granted", "refused", "since", "size")

    def __init__(
        self, size: int, since: float, granted: Callable[[], object], refused: Callable[[], object]
    ) -> None:
        self.size = size
        self.since = since
        """Time at which the wait began, on trio's clock."""
        self.granted = granted
        """Called when the request has acquired its memory."""
        self.refused = refused
        """Called instead when the request has waited too long."""


class RequestMemory:
    """Counts the bytes of all request bodies in memory, and queues requests for them.

    ``bound`` (MAX_REQUEST_BYTES) and ``max_length`` (MAX_LENGTH) are in bytes.
    """

    def __init__(self, bound: int, max_length: int) -> None:
        self.used = 0
        """Bytes in use."""
        self.max_wait = MAX_WAIT
        """Seconds that a request waits for memory before it is refused."""
        self.grace = _GRACE
        """Seconds after which the speed of a sender is known."""
        self.read_ahead = _READ_AHEAD
        """Bytes that one connection may read before it has acquired memory for them. They count
        towards no bound, and while requests wait there may be as many as there are connections."""
        self._bound = bound
        # The largest body must fit, or it would wait for ever.
        reserve = bound // _RESERVE_DIVISOR
        self._bounds = (
            bound,
            max(bound - reserve // 2, min(SMALL_BODY_BYTES, max_length)),
            max(bound - reserve, max_length),
        )
        """Bytes that may be in use together with a body of each class: tiny, small, large."""
        self._waiting: dict[Waiter, None] = {}
        self._receiving: dict[Receiver, None] = {}
        self._enqueued = trio.Event()
        self._within_bound: trio.Event | None = None
        self._granting = False
        self._stale = False
        """Whether memory was released since the queue was last checked."""

    def try_acquire(self, size: int) -> bool:
        """Acquire memory if there is enough; returns False, and acquires none, if there is not."""
        used = self.used + size
        if size <= _TINY_BODY_BYTES:
            fits = used <= self._bound
        else:
            # A large body goes behind the waiting requests: the reserved part is not for it.
            fits = used <= self._bounds[_class_of(size)] and not (
                self._waiting and size > SMALL_BODY_BYTES
            )
        if fits:
            self.used = used
        return fits

    def acquire_beyond_bound(self, size: int) -> None:
        """Acquire memory even beyond the bound, for bytes that are in memory already."""
        self.used += size

    def release(self, size: int) -> None:
        """Release memory."""
        self.used -= size
        if self._waiting:
            self._grant()
        if self._within_bound is not None and self.used <= self._bound:
            self._within_bound.set()
            self._within_bound = None

    async def wait_within_bound(self) -> None:
        """Wait until the used memory is within the bound."""
        while self.used > self._bound:
            if self._within_bound is None:
                self._within_bound = trio.Event()
            await self._within_bound.wait()

    # --- waiting -------------------------------------------------------------------------------

    def enqueue(
        self, size: int, granted: Callable[[], object], refused: Callable[[], object]
    ) -> Waiter:
        """Queue a request: call ``granted``, or ``refused`` after ``max_wait``; none may raise."""
        waiter = Waiter(size, trio.current_time(), granted, refused)
        self._waiting[waiter] = None
        self.read_ahead = _SHORT_READ_AHEAD
        self._enqueued.set()
        return waiter

    def cancel_wait(self, waiter: Waiter) -> None:
        """Remove a request from the queue: neither of its callbacks is called."""
        self._waiting.pop(waiter, None)
        if not self._waiting:
            self.read_ahead = _READ_AHEAD

    async def acquire(self, size: int) -> bool:
        """Acquire memory, and wait for it if necessary; returns False after ``max_wait``."""
        if self.try_acquire(size):
            return True
        answers: list[bool] = []
        answered = trio.Event()

        def answer(*, granted: bool) -> None:
            answers.append(granted)
            answered.set()

        waiter = self.enqueue(size, lambda: answer(granted=True), lambda: answer(granted=False))
        try:
            await answered.wait()
        except trio.Cancelled:
            self.cancel_wait(waiter)
            if answers == [True]:
                self.release(size)
            raise
        return answers[0]

    def watch(self, receiver: Receiver) -> None:
        """Add a request that receives its body: it may be refused for others."""
        self._receiving[receiver] = None

    def unwatch(self, receiver: Receiver) -> None:
        """Remove a request: its body is complete, or will not arrive."""
        self._receiving.pop(receiver, None)

    async def run(self) -> None:
        """Refuse requests that wait too long, and slow senders, until cancelled."""
        while True:
            await self._enqueued.wait()
            await trio.sleep(_TICK)
            now = trio.current_time()
            for waiter in list(self._waiting):
                if now - waiter.since >= self.max_wait:
                    self.cancel_wait(waiter)
                    waiter.refused()
            if not self._waiting:
                self._enqueued = trio.Event()
            for waiter in self._first_of_each_class():
                if waiter in self._waiting and now - waiter.since >= _WAIT_BEFORE_EVICTION:
                    self._refuse_slowest_for(waiter, now)

    def _first_of_each_class(self) -> list[Waiter]:
        """Return the requests that have waited longest, one of each class."""
        first: dict[int, Waiter] = {}
        for waiter in self._waiting:
            first.setdefault(_class_of(waiter.size), waiter)
        return [*first.values()]

    def _grant(self) -> None:
        """Grant free memory to the waiting requests, in order; smaller bodies pass larger ones.

        A request that is granted its memory may release it within the call, which leads here again.
        The outer call handles that; otherwise a request could be granted its memory twice.
        """
        self._stale = True
        if self._granting:
            return
        self._granting = True
        try:
            while self._stale:
                self._stale = False
                self._grant_once()
        finally:
            self._granting = False

    def _grant_once(self) -> None:
        closed = len(self._bounds)
        for waiter in list(self._waiting):
            size_class = _class_of(waiter.size)
            if size_class >= closed or waiter not in self._waiting:
                continue
            if self.used + waiter.size > self._bounds[size_class]:
                closed = size_class
                continue
            self.cancel_wait(waiter)
            self.used += waiter.size
            waiter.granted()

    def _refuse_slowest_for(self, waiter: Waiter, now: float) -> None:
        """Refuse the slowest senders until ``waiter`` has its memory."""
        known = [each for each in self._receiving if now - each.since >= self.grace]
        known.sort(key=lambda each: each.received / (now - each.since))
        for receiver in known:
            if waiter not in self._waiting:
                return
            if receiver in self._receiving:
                receiver.end_slow()


def _class_of(size: int) -> int:
    """Return the class of a body: 0 for a tiny one, 1 for a small one, 2 for a large one."""
    return (size > _TINY_BODY_BYTES) + (size > SMALL_BODY_BYTES)
