"""The memory of request bodies: one bound for all connections together (MAX_REQUEST_BYTES).

A body takes its memory before its first byte is read, as much as its Content-Length says: if
parts of bodies were let in, all of them could wait for the rest for ever. It gives the memory back
with the answer. Where there is none left, the request waits, unread in the kernel's buffers, and
after some seconds it is refused (503 BUSY). Bodies of up to 64 KiB may use a part of the bound
that larger ones may not, and bodies of up to 4 KiB another one: clients that announce much and
send nothing do not shut small requests out. No request waits behind one of a larger class, which
has less memory to wait for; and while requests wait, the slowest senders are ended for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL: Final = 64 * 2**10
"""Bytes of a body up to which it may use the reserve."""
_TINY: Final = 4 * 2**10
"""Bytes of a body up to which it may use all of the bound."""
_RESERVE_SHARE: Final = 8
"""One of so many parts of the bound is for small bodies, and half of that for tiny ones."""
PATIENCE: Final = 5.0
"""Seconds that a request waits for memory before it is refused."""
_PRESSURE: Final = 0.5
"""Seconds that a request waits before slow senders are ended for it."""
_GRACE: Final = 1.0
"""Seconds that a sender has to show how fast it is."""
_TICK: Final = 0.25


class Receiver(Protocol):
    """A request whose body has its memory and is on its way."""

    @property
    def since(self) -> float:
        """When it began, on trio's clock."""
        ...

    @property
    def received(self) -> int:
        """Bytes of the body that have come."""
        ...

    def end_slow(self) -> None:
        """Refuse the request and give its memory back: others wait for it."""
        ...


class Waiter:
    """A request that waits for memory."""

    __slots__ = ("granted", "refused", "since", "size")

    def __init__(
        self, size: int, since: float, granted: Callable[[], object], refused: Callable[[], object]
    ) -> None:
        self.size = size
        self.since = since
        self.granted = granted
        """Called once the memory is the request's."""
        self.refused = refused
        """Called instead, when it has waited long enough."""


class RequestMemory:
    """Counts the bytes of all request bodies in memory, and the requests that wait for some."""

    def __init__(self, bound: int, max_length: int) -> None:
        self.used = 0
        self._bound = bound
        # The largest body has to fit, or it would wait for ever.
        reserve = bound // _RESERVE_SHARE
        self._bounds = (
            bound,
            max(bound - reserve // 2, min(SMALL, max_length)),
            max(bound - reserve, max_length),
        )
        """How much may be in use with a body of each class: tiny, small, large."""
        self._waiting: dict[Waiter, None] = {}
        self._receiving: dict[Receiver, None] = {}
        self._news = trio.Event()
        self._paid_back: trio.Event | None = None
        self._granting = False
        self._stale = False
        """Whether memory was given back since those that wait were last looked at."""

    def take(self, size: int) -> bool:
        """Take memory; returns False, and takes none, where there is none left."""
        used = self.used + size
        if size <= _TINY:
            fits = used <= self._bound
        else:
            # Large ones behind those that wait: the reserve is not for them.
            fits = used <= self._bounds[_class_of(size)] and not (self._waiting and size > SMALL)
        if fits:
            self.used = used
        return fits

    def overdraw(self, size: int) -> None:
        """Take memory, bound or not: for what is held of a body beyond what it has taken."""
        self.used += size

    def release(self, size: int) -> None:
        """Give memory back."""
        self.used -= size
        if self._waiting:
            self._grant()
        if self._paid_back is not None and self.used <= self._bound:
            self._paid_back.set()
            self._paid_back = None

    async def wait_paid_back(self) -> None:
        """Return once no more is used than the bound allows: nothing is overdrawn."""
        while self.used > self._bound:
            if self._paid_back is None:
                self._paid_back = trio.Event()
            await self._paid_back.wait()

    # --- waiting -------------------------------------------------------------------------------

    def wait(
        self, size: int, granted: Callable[[], object], refused: Callable[[], object]
    ) -> Waiter:
        """Wait in line: calls ``granted``, or ``refused`` after PATIENCE. Neither may raise."""
        waiter = Waiter(size, trio.current_time(), granted, refused)
        self._waiting[waiter] = None
        self._news.set()
        return waiter

    def forget(self, waiter: Waiter) -> None:
        """Call neither: the request is gone."""
        self._waiting.pop(waiter, None)

    async def acquire(self, size: int) -> bool:
        """Take memory, waiting in line if need be; returns False after PATIENCE."""
        if self.take(size):
            return True
        answers: list[bool] = []
        answered = trio.Event()

        def answer(*, granted: bool) -> None:
            answers.append(granted)
            answered.set()

        waiter = self.wait(size, lambda: answer(granted=True), lambda: answer(granted=False))
        try:
            await answered.wait()
        except trio.Cancelled:
            self.forget(waiter)
            if answers == [True]:
                self.release(size)
            raise
        return answers[0]

    def watch(self, receiver: Receiver) -> None:
        """Take note of a body that is on its way: it may be ended for others."""
        self._receiving[receiver] = None

    def unwatch(self, receiver: Receiver) -> None:
        """Take note that the body is there, or will not come."""
        self._receiving.pop(receiver, None)

    async def run(self) -> None:
        """Look after those that wait, for ever."""
        while True:
            await self._news.wait()
            await trio.sleep(_TICK)
            now = trio.current_time()
            for waiter in list(self._waiting):
                if now - waiter.since >= PATIENCE:
                    self.forget(waiter)
                    waiter.refused()
            if not self._waiting:
                self._news = trio.Event()
            for waiter in self._first_of_each_class():
                if waiter in self._waiting and now - waiter.since >= _PRESSURE:
                    self._end_slowest_for(waiter, now)

    def _first_of_each_class(self) -> list[Waiter]:
        """Return the requests that have waited longest for tiny, small and large bodies."""
        first: dict[int, Waiter] = {}
        for waiter in self._waiting:
            first.setdefault(_class_of(waiter.size), waiter)
        return [*first.values()]

    def _grant(self) -> None:
        """Give those that wait what there is: in order, but past those of a larger class.

        A request that is granted its memory may give it back within the call, which leads here
        again: that is left to the call which is under way, or a request would be granted twice.
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
            self.forget(waiter)
            self.used += waiter.size
            waiter.granted()

    def _end_slowest_for(self, waiter: Waiter, now: float) -> None:
        """End the slowest senders until ``waiter`` has its memory."""
        known = [one for one in self._receiving if now - one.since >= _GRACE]
        known.sort(key=lambda one: one.received / (now - one.since))
        for receiver in known:
            if waiter not in self._waiting:
                return
            if receiver in self._receiving:
                receiver.end_slow()


def _class_of(size: int) -> int:
    """Return the class of a body: 0 for a tiny one, 1 for a small one, 2 for a large one."""
    return (size > _TINY) + (size > SMALL)
