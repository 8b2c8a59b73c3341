"""Wait for input on all connections with one epoll, a few of them in each pass of the event loop.

trio wakes the tasks of all sockets that are readable in one pass. Each response is the end of one
upload and the beginning of another, a tenth of a millisecond: with 64 connections each client of
the daemon would wait several milliseconds, several times. The registration of a connection lasts as
long as the connection, which also costs less than one for each response.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING, Final

import outcome
import trio

if TYPE_CHECKING:
    import socket

_MOST_PER_PASS: Final = 8
"""Connections whose tasks are woken in one pass."""
_WITHOUT_MEMORY: Final = 0.01
"""Seconds between two polls while the system has no memory to wait for input."""
_EVENTS: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_ENDED: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class InputPoller:
    """The epoll of some connections; it must be created within trio's run, and closed."""

    def __init__(self) -> None:
        """Start the task. Raises OSError if the system has no descriptor for the epoll."""
        self._epoll = select.epoll()
        self._watched: dict[int, WatchedInput] = {}
        self._scope = trio.CancelScope()
        # A system task, because the transport of an HTTP client has no task of its own.
        trio.lowlevel.spawn_system_task(self._run)

    def watch(self, wire: socket.socket) -> WatchedInput:
        """Watch a socket until ``unwatch``. Raises OSError if no more sockets can be polled."""
        fd = wire.fileno()
        self._epoll.register(fd, _EVENTS)
        self._watched[fd] = watched = WatchedInput()
        return watched

    def unwatch(self, wire: socket.socket) -> None:
        """Stop watching a socket that is about to be closed."""
        self._watched.pop(wire.fileno()).close()
        if not self._epoll.closed:
            self._epoll.unregister(wire)

    def close(self) -> None:
        """End the task; no connection must wait."""
        self._scope.cancel()

    async def _run(self) -> None:
        with self._scope:
            try:
                while True:
                    try:
                        await trio.lowlevel.wait_readable(self._epoll.fileno())
                    except OSError:  # the system has no memory for trio's epoll
                        await trio.sleep(_WITHOUT_MEMORY)
                    for fd, events in self._epoll.poll(0, _MOST_PER_PASS):
                        watched = self._watched.get(fd)
                        if watched is not None:
                            watched.arrived(events)
            finally:
                trio.lowlevel.notify_closing(self._epoll.fileno())
                self._epoll.close()


class WatchedInput:
    """The input of one socket, which is reported once when it arrives, not while it is there."""

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None
        self._has_arrived = False
        self._has_ended = False
        self._is_closed = False

    async def wait(self) -> None:
        """Return once input may have arrived since the last call.

        The caller must read all that is there before the next call. Returns without a checkpoint if
        the input has arrived already, or has ended. Raises trio.ClosedResourceError after
        ``close``.
        """
        if self._is_closed:
            raise trio.ClosedResourceError
        if self._has_arrived:
            self._has_arrived = self._has_ended
            return
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abandon)

    def arrived(self, events: int) -> None:
        """Wake the task that waits, or note the input for the next call of ``wait``."""
        if events & _ENDED:
            self._has_arrived = self._has_ended = True
        if self._task is None:
            self._has_arrived = True
        else:
            trio.lowlevel.reschedule(self._task)
            self._task = None

    def close(self) -> None:
        """Let ``wait`` fail, also if it waits."""
        self._is_closed = True
        if self._task is not None:
            trio.lowlevel.reschedule(self._task, outcome.Error(trio.ClosedResourceError()))
            self._task = None

    def _abandon(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED
