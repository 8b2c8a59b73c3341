"""The process that decodes large bodies: what runs in it, and how the daemon speaks with it.

One request at a time: a head in MessagePack with its length in front, then the bytes of the body.
The answer is a head of the same form, then the length of each payload as a number of four bytes,
then the payloads as NDJSON. The process ends with its socket.

It imports little on purpose: it takes 50 ms and 20 MiB to start.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from payloadd.ingress.body import Limits, decode
from payloadd.ingress.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")

LENGTH: Final = struct.Struct("!I")
SIZES: Final = "I"
"""Type code of the array with the payloads' lengths."""
_NICENESS: Final = 5
"""The event loop and the journal go first where the cores are few."""
_JOINED_AT_ONCE: Final = 1000


class Head(msgspec.Struct):
    """What the daemon says of a body that follows: ``size`` bytes."""

    content_type: str | None
    content_encoding: str | None
    limits: Limits
    size: int


class Refusal(msgspec.Struct, tag=True):
    """A Problem, by its parts."""

    code: str
    detail: str
    headers: dict[str, str]


class Decoded(msgspec.Struct, tag=True):
    """What follows: ``payloads`` lengths, and ``size`` bytes of NDJSON."""

    payloads: int
    size: int


_ANSWER: Final[msgspec.msgpack.Decoder[Refusal | Decoded]] = msgspec.msgpack.Decoder(
    Refusal | Decoded
)


def send_head(sock: socket.socket, head: Head | Refusal | Decoded) -> None:
    """Send a head. Raises OSError."""
    data = msgspec.msgpack.encode(head)
    sock.sendall(LENGTH.pack(len(data)) + data)


def receive_answer(sock: socket.socket) -> Refusal | Decoded:
    """Return the head of an answer. Raises OSError, EOFError, msgspec.DecodeError."""
    return _ANSWER.decode(_receive_framed(sock))


def receive(sock: socket.socket, size: int) -> bytes:
    """Return exactly ``size`` bytes. Raises OSError, and EOFError where there are fewer."""
    data = sock.recv(size, socket.MSG_WAITALL) if size else b""
    if len(data) == size:
        return data
    # A signal or a full buffer may cut it short.
    whole = bytearray(data)
    while len(whole) < size:
        more = sock.recv(size - len(whole), socket.MSG_WAITALL)
        if not more:
            raise EOFError("the other side has closed")
        whole += more
    return bytes(whole)


def _receive_framed(sock: socket.socket) -> bytes:
    (size,) = LENGTH.unpack(receive(sock, LENGTH.size))
    return receive(sock, size)


def main(file: int) -> None:
    """Decode what comes through the socket ``file`` until it is closed."""
    # A terminal's Ctrl-C and systemd's SIGTERM are handled by the daemon.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):  # a sandbox may not allow it
        os.nice(_NICENESS)
    head_of = msgspec.msgpack.Decoder(Head).decode
    with socket.socket(fileno=file) as sock, suppress(EOFError, ConnectionError):
        while True:
            _serve(sock, head_of(_receive_framed(sock)))


def _serve(sock: socket.socket, head: Head) -> None:
    """Take one body apart and answer."""
    body = receive(sock, head.size)
    try:
        payloads = decode(body, head.content_type, head.content_encoding, head.limits)
    except Problem as problem:
        send_head(sock, Refusal(problem.code, problem.detail, problem.headers))
        return
    del body  # the payloads hold it, if they have to
    sizes = array(SIZES, map(len, payloads))
    send_head(sock, Decoded(len(sizes), sum(sizes) + len(sizes)))
    sock.sendall(sizes)
    _send_lines(sock, payloads)


def _send_lines(sock: socket.socket, payloads: Sequence[bytes | msgspec.Raw]) -> None:
    """Send the payloads as NDJSON, some at a time: all of them joined are the body once more."""
    for start in range(0, len(payloads), _JOINED_AT_ONCE):
        sock.sendall(b"\n".join([*payloads[start : start + _JOINED_AT_ONCE], b""]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
