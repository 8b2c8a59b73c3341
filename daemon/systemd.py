"""What systemd and the daemon tell each other: sd_notify(3) and sd_listen_fds(3).

One datagram and three variables: not worth a library. Without systemd nothing here does
anything. The variables are the protocol's, not settings, and are taken out of the
environment once read, as sd_listen_fds(3) asks.
"""

from __future__ import annotations

import os
import socket
from typing import Final

_FIRST_FD: Final = 3


class Notifier:
    """Sends the states of sd_notify(3) to ``$NOTIFY_SOCKET``, if there is one."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")
        # A leading @ stands for the abstract namespace, which the kernel spells with a NUL.
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def ready(self) -> None:
        """Say that POSTs are taken from now on."""
        self._send("READY=1\nSTATUS=serving")

    def stopping(self) -> None:
        """Say that the drain has begun."""
        self._send("STOPPING=1\nSTATUS=draining")

    def status(self, text: str) -> None:
        """Show one line in ``systemctl status``."""
        self._send(f"STATUS={text}")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            # A full receive queue must not hold up the daemon; a lost status line is no harm.
            sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
            try:
                sock.sendto(message.encode(), self._address)
            except OSError:
                return


def passed_sockets() -> list[socket.socket]:
    """Return the listening stream sockets that systemd passed, none if it passed none."""
    meant_for = os.environ.pop("LISTEN_PID", "")
    count = os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if meant_for != str(os.getpid()) or not count.isdigit():
        return []
    sockets = []
    for fd in range(_FIRST_FD, _FIRST_FD + int(count)):
        os.set_inheritable(fd, False)  # noqa: FBT003 - the standard library's signature
        sockets.append(socket.socket(fileno=fd))
    return sockets
