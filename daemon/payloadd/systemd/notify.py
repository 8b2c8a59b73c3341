"""What systemd and the daemon tell each other: sd_notify(3) and sd_listen_fds(3).

One datagram and a few variables: not worth a library. Without systemd nothing here does
anything. The variables are the protocol's, not settings, and are taken out of the
environment once read, as sd_listen_fds(3) asks.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from itertools import zip_longest
from typing import TYPE_CHECKING, Final

import trio

from payloadd.errors import StartError
from payloadd.escaping import escape_controls

if TYPE_CHECKING:
    from typing import TextIO

_FIRST_FD: Final = 3
_ADMIN: Final = "admin"
"""FileDescriptorName= of a socket that is for the admin address (systemd.socket(5))."""
_LONGEST_STATUS: Final = 1000
"""Characters. systemd drops a datagram of more than 4096 bytes, READY=1 or not."""
_PATIENCE: Final = 1.0
"""Seconds that what must not be lost may hold up the daemon while systemd does not read."""


class Notifier:
    """Sends the states of sd_notify(3) to ``$NOTIFY_SOCKET``, if there is one."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        # A leading @ stands for the abstract namespace, which the kernel spells with a NUL.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_seconds = _watchdog_seconds()
        """Longest time between two signs of life (sd_watchdog_enabled(3)); None: not asked for."""

    @property
    def heard(self) -> bool:
        """Whether there is somebody to tell."""
        return bool(self._address)

    def ready(self) -> None:
        """Say that POSTs are taken from now on."""
        self._send("READY=1\nSTATUS=serving", _PATIENCE)

    def stopping(self) -> None:
        """Say that the drain has begun."""
        self._send("STOPPING=1\nSTATUS=draining", _PATIENCE)

    def status(self, text: str) -> None:
        """Show one line in ``systemctl status``."""
        # A line break would begin another assignment, and the text may be a store's.
        line = escape_controls(" ".join(text.split()))
        self._send("STATUS=" + line[:_LONGEST_STATUS])

    def extend(self, seconds: float) -> None:
        """Ask for so much time from now, where TimeoutStopSec= would be over before."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}")

    def alive(self) -> None:
        """Give the watchdog a sign of life."""
        self._send("WATCHDOG=1")

    def _send(self, message: str, patience: float = 0.0) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            # A full receive queue must not hold up the daemon; a lost status line is no harm.
            sock.settimeout(patience)
            try:
                sock.sendto(message.encode(errors="replace"), self._address)
            except OSError:
                return


class PassedSockets:
    """The listening sockets that systemd opened for this process."""

    def __init__(self) -> None:
        meant_for = os.environ.pop("LISTEN_PID", "")
        count = os.environ.pop("LISTEN_FDS", "")
        names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
        ours = meant_for == str(os.getpid()) and count.isdigit()
        fds = range(_FIRST_FD, _FIRST_FD + int(count)) if ours else ()
        self._names = dict(zip_longest(fds, names[: len(fds)]))
        for fd in fds:
            with suppress(OSError):  # ``listeners`` says what is wrong with it
                os.set_inheritable(fd, False)  # noqa: FBT003 - the standard library's signature

    def listeners(self, *, admin: bool = False) -> list[trio.SocketListener]:
        """Return those for POSTs, or those for the admin address; call it once for each.

        Raises StartError for what is no listening stream socket.
        """
        fds = [fd for fd, name in self._names.items() if (name == _ADMIN) is admin]
        try:
            return [_listener(fd) for fd in fds]
        except (OSError, ValueError) as error:
            raise StartError(f"cannot listen on what LISTEN_FDS passes: {error}") from error


def _listener(fd: int) -> trio.SocketListener:
    sock = socket.socket(fileno=fd)
    try:
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    except BaseException:
        sock.close()
        raise


def is_journal(stream: TextIO) -> bool:
    """Return whether what is written to ``stream`` goes to systemd-journald.

    ``$JOURNAL_STREAM`` names the device and inode of its socket (systemd.exec(5)).
    """
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _watchdog_seconds() -> float | None:
    meant_for = os.environ.pop("WATCHDOG_PID", "")
    microseconds = os.environ.pop("WATCHDOG_USEC", "")
    if meant_for not in ("", str(os.getpid())) or not microseconds.isdigit():
        return None
    return int(microseconds) / 1_000_000 or None
