"""Watch sockets without a task for each of them: one task calls back those that are readable."""

from __future__ import annotations

import select
from typing import Final, Protocol

import trio

_CALLS_PER_POLL: Final = 64


class Readable(Protocol):
    """An object that is called when its socket has input; the call must not raise."""

    def on_readable(self) -> None:
        """Read the input."""
        ...


class Watcher(Protocol):
    """Calls a ``Readable`` while its socket has input: the fast path, or without one ``Poller``."""

    def register(self, fd: int, connection: Readable) -> None:
        """Call ``connection`` while ``fd`` has input; OSError if no more sockets can be watched."""
        ...

    def unregister(self, fd: int, *, bulk: bool) -> None:
        """Stop watching ``fd``; call this before it is closed."""
        ...


class Poller:
    """Watches sockets where no fast path does it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Readable] = {}

    def register(self, fd: int, connection: Readable) -> None:
        """Call ``connection`` while ``fd`` has input; OSError if no more sockets can be watched."""
        self._epoll.register(fd, select.EPOLLIN)
        self._watched[fd] = connection

    def unregister(self, fd: int, *, bulk: bool) -> None:  # noqa: ARG002 - see Watcher
        """Stop watching ``fd``."""
        if not self._epoll.closed:
            self._epoll.unregister(fd)
        del self._watched[fd]

    async def run(self) -> None:
        """Call the sockets that have input, until cancelled."""
        try:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                for fd, _ in self._epoll.poll(0, _CALLS_PER_POLL):
                    found = self._watched.get(fd)
                    if found is not None:
                        found.on_readable()
        finally:
            trio.lowlevel.notify_closing(self._epoll.fileno())
            self._epoll.close()


class Watched:
    """The registration of one socket with a watcher; the subclass reads the socket."""

    __slots__ = ("_fd", "_watcher", "watched")

    def __init__(self, watcher: Watcher, fd: int) -> None:
        self._watcher = watcher
        self._fd = fd
        self.watched = False

    def on_readable(self) -> None:
        """Read the input."""
        raise NotImplementedError

    def watch(self) -> None:
        """Have ``on_readable`` called while there is input. Raises OSError."""
        if not self.watched:
            self._watcher.register(self._fd, self)
            self.watched = True

    def unwatch(self) -> None:
        """Have it called no more."""
        if self.watched:
            self.watched = False
            self._watcher.unregister(self._fd, bulk=False)
