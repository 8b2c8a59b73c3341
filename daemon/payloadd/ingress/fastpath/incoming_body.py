"""The body of one request while it arrives, and the memory that it uses.

A body with a Content-Length acquires all of its memory before it is read further; a chunked body
acquires memory as it arrives. While there is none, nothing is read (see ``request_memory.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import trio

from payloadd.ingress.large_bodies import busy_error
from payloadd.ingress.problem import Problem, refusal_problem

if TYPE_CHECKING:
    from payloadd.ingress.fastpath.framing import Framing
    from payloadd.ingress.request_memory import RequestMemory, Waiter

_NO_MEMORY: Final = "too many request bodies at once (MAX_REQUEST_BYTES); nothing was accepted"
_TOO_SLOW: Final = (
    "the body came too slowly while other requests waited for memory (MAX_REQUEST_BYTES);"
    " nothing of it was accepted"
)
_FASTEST: Final = 2**40


class BodyOwner(Protocol):
    """The connection that receives a body."""

    def await_turn(self) -> None:
        """Continue in a later pass of the event loop."""
        ...

    def on_body_refused(self, problem: Problem) -> None:
        """Refuse the request."""
        ...


class IncomingBody:
    """A body that is being received; ``framing`` has its bytes."""

    def __init__(self, framing: Framing, memory: RequestMemory, owner: BodyOwner) -> None:
        """Use ``memory``; ``owner`` is called when memory is granted or refused."""
        self.framing = framing
        self.charge = 0
        """Bytes of memory that the body has acquired."""
        self.since = 0.0
        """Time at which the body got its memory, on trio's clock."""
        self._memory = memory
        self._owner = owner
        self._waiter: Waiter | None = None
        """The entry in the queue for memory."""
        self._watched = False
        """Whether the request memory watches how fast the body arrives."""

    @property
    def received(self) -> int:
        """Bytes of the body received so far."""
        return len(self.framing.data)

    @property
    def read_bytes(self) -> int:
        """Bytes to read from the connection next, at most."""
        acquired = self.charge - self.received
        return min(self.framing.read_bytes, max(acquired, self._memory.read_ahead))

    def progress(self) -> int:
        """Return the bytes received so far, for the ranking of slow clients.

        A body that waits for memory counts as faster than any other.
        """
        return self.received if self._waiter is None else _FASTEST

    def acquire(self) -> bool:
        """Acquire the memory that the body needs now; without it, queue for it and return False."""
        missing = self.framing.needed - self.charge
        if missing > 0 and not self._memory.try_acquire(missing):
            self._unwatch()
            self._waiter = self._memory.enqueue(missing, self._on_granted, self._on_refused)
            return False
        self.charge += max(missing, 0)
        if not (self._watched or self.framing.complete):
            self._watch()
        return True

    def finish(self) -> bytearray:
        """Return the complete body; the caller has to release ``charge`` from now on."""
        self._unwatch()
        return self.framing.data

    def release(self) -> None:
        """Drop the body and release its memory."""
        self._unwatch()
        if self._waiter is not None:
            self._memory.cancel_wait(self._waiter)
            self._waiter = None
        charge, self.charge = self.charge, 0
        if charge:
            self._memory.release(charge)

    def end_slow(self) -> None:
        """Refuse the request: its body arrives slowly, and other requests wait for memory."""
        self._owner.on_body_refused(refusal_problem(busy_error(_TOO_SLOW)))

    def _on_granted(self) -> None:
        self._waiter = None
        self.charge = self.framing.needed
        self._watch()
        # In a pass of its own: the memory of one large body is enough for hundreds of small ones.
        self._owner.await_turn()

    def _on_refused(self) -> None:
        self._waiter = None
        self._owner.on_body_refused(refusal_problem(busy_error(_NO_MEMORY)))

    def _watch(self) -> None:
        self.since = trio.current_time()
        self._watched = True
        self._memory.watch(self)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._memory.unwatch(self)
