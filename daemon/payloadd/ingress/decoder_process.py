"""The process that decodes large bodies, and its protocol on the socket to the daemon.

The process serves one request at a time. A request is a head in MessagePack with its length in
front, then the bytes of the body. The answer is a head of the same form, then the length of each
payload as a number of four bytes, then the payloads as NDJSON. The process ends when its socket is
closed.

It imports few modules, so that it starts quickly and takes little memory.
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
"""Gives the event loop and the journal precedence where cores are few."""
_PAYLOADS_PER_BLOCK: Final = 1000


class DecodeRequest(msgspec.Struct):
    """The head of a request; ``size`` bytes of the body follow."""

    content_type: str | None
    content_encoding: str | None
    limits: Limits
    size: int
    document: bool = False


class DecodeRefusal(msgspec.Struct, tag=True):
    """The head of an answer that refuses the body: the parts of a Problem."""

    code: str
    detail: str
    headers: dict[str, str]


class DecodeResult(msgspec.Struct, tag=True):
    """The head of an answer: ``payloads`` lengths and ``size`` bytes of NDJSON follow."""

    payloads: int
    size: int


_ANSWER_DECODER: Final[msgspec.msgpack.Decoder[DecodeRefusal | DecodeResult]] = (
    msgspec.msgpack.Decoder(DecodeRefusal | DecodeResult)
)


def send_head(sock: socket.socket, head: DecodeRequest | DecodeRefusal | DecodeResult) -> None:
    """Send a head. Raises OSError."""
    data = msgspec.msgpack.encode(head)
    sock.sendall(LENGTH.pack(len(data)) + data)


def receive_answer(sock: socket.socket) -> DecodeRefusal | DecodeResult:
    """Return the head of an answer. Raises OSError, EOFError, msgspec.DecodeError."""
    return _ANSWER_DECODER.decode(_receive_framed(sock))


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


def _receive_framed(sock: socket.socket) -> bytes:
    (size,) = LENGTH.unpack(receive(sock, LENGTH.size))
    return receive(sock, size)


def main(file: int) -> None:
    """Decode the bodies that arrive on the socket ``file`` until it is closed."""
    # A terminal's Ctrl-C and systemd's SIGTERM are handled by the daemon.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):  # a sandbox may not allow it
        os.nice(_NICENESS)
    decode_head = msgspec.msgpack.Decoder(DecodeRequest).decode
    with socket.socket(fileno=file) as sock, suppress(EOFError, ConnectionError):
        while True:
            _serve(sock, decode_head(_receive_framed(sock)))


def _serve(sock: socket.socket, head: DecodeRequest) -> None:
    """Decode one body and answer."""
    body = receive(sock, head.size)
    try:
        payloads = decode(
            body,
            head.content_type,
            head.content_encoding,
            head.limits,
            document=head.document,
        )
    except Problem as problem:
        send_head(sock, DecodeRefusal(problem.code, problem.detail, problem.headers))
        return
    del body  # the payloads keep it in memory if they refer to it
    sizes = array(SIZES, map(len, payloads))
    send_head(sock, DecodeResult(len(sizes), sum(sizes) + len(sizes)))
    sock.sendall(sizes)
    _send_lines(sock, payloads)


def _send_lines(sock: socket.socket, payloads: Sequence[bytes | msgspec.Raw]) -> None:
    """Send the payloads as NDJSON in blocks: all of them joined would be a copy of the body."""
    for start in range(0, len(payloads), _PAYLOADS_PER_BLOCK):
        sock.sendall(b"\n".join([*payloads[start : start + _PAYLOADS_PER_BLOCK], b""]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
