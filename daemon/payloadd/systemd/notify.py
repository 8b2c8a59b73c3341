"""Speak systemd's protocols: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3).

They are one datagram and a few variables, so no library is used. Without systemd nothing here has
an effect. The variables belong to the protocols, they are not settings; they are removed from the
environment once they are read, as sd_listen_fds(3) asks.
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
"""The first passed descriptor (SD_LISTEN_FDS_START)."""
_ADMIN: Final = "admin"
"""FileDescriptorName= of a socket for the admin address (systemd.socket(5))."""
_LONGEST_STATUS: Final = 1000
"""Characters. systemd drops a datagram of more than 4096 bytes as a whole, READY=1 included."""
_SEND_TIMEOUT: Final = 1.0
"""Seconds for which a message that must arrive may block the daemon while systemd does not read."""


class Notifier:
    """Send the states of sd_notify(3) to ``$NOTIFY_SOCKET``, if it is set.

    The methods have the names of the states. No method raises: a message that cannot be sent is
    lost.
    """

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        # A leading @ stands for the abstract namespace, which the kernel spells with a NUL.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_seconds = _watchdog_seconds()
        """The longest time between two ``alive`` (sd_watchdog_enabled(3)); None: no watchdog."""

    @property
    def enabled(self) -> bool:
        """Whether systemd (or another manager) gave a socket for messages."""
        return bool(self._address)

    def ready(self) -> None:
        """Report that the daemon accepts requests."""
        self._send("READY=1\nSTATUS=serving", _SEND_TIMEOUT)

    def stopping(self) -> None:
        """Report that the drain has begun."""
        self._send("STOPPING=1\nSTATUS=draining", _SEND_TIMEOUT)

    def status(self, text: str) -> None:
        """Show ``text`` as one line in ``systemctl status``; a long one is cut."""
        # A line break would begin another assignment, and the text may come from a store.
        line = escape_controls(" ".join(text.split()))
        self._send("STATUS=" + line[:_LONGEST_STATUS])

    def extend(self, seconds: float) -> None:
        """Ask for ``seconds`` from now, in case TimeoutStopSec= ends earlier."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1_000_000)}")

    def alive(self) -> None:
        """Restart the time of the watchdog."""
        self._send("WATCHDOG=1")

    def _send(self, message: str, timeout: float = 0.0) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            # A full receive queue must not block the daemon; a lost status line is harmless.
            sock.settimeout(timeout)
            try:
                sock.sendto(message.encode(errors="replace"), self._address)
            except OSError:
                return


class PassedSockets:
    """The listening sockets that systemd opened for this process.

    ``first_fd`` is the first passed descriptor; only tests choose another one.
    """

    def __init__(self, first_fd: int = _FIRST_FD) -> None:
        meant_for = os.environ.pop("LISTEN_PID", "")
        count = os.environ.pop("LISTEN_FDS", "")
        names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
        ours = meant_for == str(os.getpid()) and count.isdigit()
        fds = range(first_fd, first_fd + int(count)) if ours else ()
        self._names = dict(zip_longest(fds, names[: len(fds)]))
        for fd in fds:
            with suppress(OSError):  # ``listeners`` raises the error
                os.set_inheritable(fd, False)  # noqa: FBT003 - the standard library's signature

    def listeners(self, *, admin: bool = False) -> list[trio.SocketListener]:
        """Return the public sockets, or those for the admin address.

        Call it once for each: the listeners own the descriptors. Raises StartError if a descriptor
        is not a listening stream socket.
        """
        fds = [fd for fd, name in self._names.items() if (name == _ADMIN) is admin]
        try:
            return [_listener(fd) for fd in fds]
        except (OSError, ValueError) as error:
            reason = f"cannot listen on the sockets that LISTEN_FDS passes: {error}"
            raise StartError(reason) from error


def _listener(fd: int) -> trio.SocketListener:
    sock = socket.socket(fileno=fd)
    try:
        return trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    except BaseException:
        sock.close()
        raise


def is_journal(stream: TextIO) -> bool:
    """Return whether ``stream`` leads to systemd-journald.

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
