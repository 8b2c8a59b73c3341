"""A process of our own that does long work, so that no thread holds Python's lock for so long.

The process has one socket, to the daemon, and ends when the socket is closed. Messages are bytes
with their length in front.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from typing import Final

_LENGTH: Final = struct.Struct("!I")
_NICENESS: Final = 5
"""Gives the event loop and the journal precedence where cores are few."""
_END_SECONDS: Final = 1.0
_KEPT_ENVIRONMENT: Final = ("PATH", "PYTHON", "LANG", "LC_", "LD_LIBRARY_PATH", "COV", "TZ")
"""Prefixes of the environment variables that the process gets: no variable with secrets."""


class ChildProcess:
    """A process that runs one module, and the socket to it. The methods block."""

    def __init__(self, module: str) -> None:
        """Start the process."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", module, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={
                    name: text
                    for name, text in os.environ.items()
                    if name.startswith(_KEPT_ENVIRONMENT)
                },
                start_new_session=True,
            )
        self.end_timeout = _END_SECONDS
        """Seconds after which ``end`` kills the process."""
        self.socket = ours
        """Our side of the socket."""

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def end(self) -> None:
        """End the process. It ends by itself when its socket closes, unless it is working."""
        # This wakes a thread that is blocked on the socket.
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        try:
            self._process.wait(self.end_timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def serve_as_child(file: int) -> socket.socket:
    """Return the socket ``file`` to the daemon; for the main function of a child's module."""
    # A terminal's Ctrl-C and systemd's SIGTERM are handled by the daemon.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):  # a sandbox may not allow it
        os.nice(_NICENESS)
    return socket.socket(fileno=file)


def send_message(sock: socket.socket, message: bytes) -> None:
    """Send a message with its length in front. Raises OSError."""
    sock.sendall(_LENGTH.pack(len(message)) + message)


def receive_message(sock: socket.socket) -> bytes:
    """Return the next message. Raises OSError, and EOFError at the end of the socket."""
    (size,) = _LENGTH.unpack(receive(sock, _LENGTH.size))
    return receive(sock, size)


def receive(sock: socket.socket, size: int) -> bytes:
    """Return exactly ``size`` bytes. Raises OSError, and EOFError if the socket ends before."""
    data = sock.recv(size, socket.MSG_WAITALL) if size else b""
    if len(data) == size:
        return data
    # A signal or a full buffer may cut the read short.
    whole = bytearray(data)
    while len(whole) < size:
        more = sock.recv(size - len(whole), socket.MSG_WAITALL)
        if not more:
            raise EOFError("the other side has closed")
        whole += more
    return bytes(whole)
