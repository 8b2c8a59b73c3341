"""The process that decodes large bodies, and its protocol on the socket to the daemon.

The process serves one request at a time. A request is a head in MessagePack with its length in
front, then the bytes of the body. The answer is a head of the same form, then the length of each
payload as a number of four bytes, then the payloads as NDJSON. The process ends when its socket is
closed.

It imports few modules, so that it starts quickly and takes little memory.
"""

from __future__ import annotations

import sys
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from payloadd.child_process import receive, receive_message, send_message, serve_as_child
from payloadd.ingress.body import Limits, decode
from payloadd.ingress.problem import Problem

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

T = TypeVar("T")

SIZES: Final = "I"
"""Type code of the array with the payloads' lengths."""
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
    send_message(sock, msgspec.msgpack.encode(head))


def receive_answer(sock: socket.socket) -> DecodeRefusal | DecodeResult:
    """Return the head of an answer. Raises OSError, EOFError, msgspec.DecodeError."""
    return _ANSWER_DECODER.decode(receive_message(sock))


def main(file: int) -> None:
    """Decode the bodies that arrive on the socket ``file`` until it is closed."""
    decode_head = msgspec.msgpack.Decoder(DecodeRequest).decode
    with serve_as_child(file) as sock, suppress(EOFError, ConnectionError):
        while True:
            _serve(sock, decode_head(receive_message(sock)))


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
