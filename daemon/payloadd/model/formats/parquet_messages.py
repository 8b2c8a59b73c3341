"""The messages between the daemon and the process that encodes Parquet.

The first message has the options; its answer says that pyarrow works. A request is a head in
MessagePack, then the ids of the jobs (16 bytes each), the numbers of their payloads (4 bytes each)
and the payloads as NDJSON. The answer is a head, then the bytes of the object.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final

import msgspec

from payloadd.child_process import receive, receive_message, send_message
from payloadd.config.parquet_schema import ParquetSchema

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from payloadd.model.job import Job

VERSION: Final = "parquet-1"
_COUNTS: Final = "I"
"""Type code of the array with the numbers of payloads."""
_ID_BYTES: Final = 16


class ParquetOptions(msgspec.Struct, frozen=True):
    """The settings that decide the content of objects."""

    schema: ParquetSchema = ParquetSchema()
    sort_by: tuple[str, ...] = ()
    partitions: frozenset[str] = frozenset()
    """Names, in lower case, that no column may have, because a folder of the key has them."""


class TableJobs(msgspec.Struct):
    """The jobs of one object."""

    ids: Sequence[int]
    """The ids as numbers."""
    payloads: Sequence[int]
    """The number of payloads of each."""
    lines: bytes
    """The payloads of all of them as NDJSON."""


class EncodeRequest(msgspec.Struct):
    """The head of a request."""

    jobs: int
    size: int
    """Bytes of the payloads as NDJSON."""


class EncodeResult(msgspec.Struct, tag=True):
    """The head of an answer: ``size`` bytes of the object follow."""

    size: int
    misfits: dict[str, int]


class EncodeFailure(msgspec.Struct, tag=True):
    """The head of an answer to what cannot be encoded."""

    reason: str


_encode: Final = msgspec.msgpack.Encoder().encode
_decode_request: Final = msgspec.msgpack.Decoder(EncodeRequest).decode
_decode_answer: Final = msgspec.msgpack.Decoder(EncodeResult | EncodeFailure).decode


def send_options(sock: socket.socket, options: ParquetOptions) -> EncodeResult | EncodeFailure:
    """Send the options, and return the answer. Raises OSError, EOFError."""
    send_message(sock, _encode(options))
    answer: EncodeResult | EncodeFailure = _decode_answer(receive_message(sock))
    return answer


def request_object(
    sock: socket.socket, jobs: Sequence[Job], pieces: Sequence[bytes]
) -> tuple[EncodeResult | EncodeFailure, bytes]:
    """Have an object encoded; return the head of the answer, and the bytes of the object.

    ``pieces`` are the lines of all jobs. Raises OSError, EOFError.
    """
    send_message(sock, _encode(EncodeRequest(len(jobs), sum(map(len, pieces)))))
    sock.sendall(b"".join([job.id.int.to_bytes(_ID_BYTES) for job in jobs]))
    sock.sendall(array(_COUNTS, [job.payloads for job in jobs]))
    for piece in pieces:
        sock.sendall(piece)
    answer: EncodeResult | EncodeFailure = _decode_answer(receive_message(sock))
    return answer, receive(sock, answer.size) if isinstance(answer, EncodeResult) else b""


def receive_options(sock: socket.socket) -> ParquetOptions:
    """Return the options. Raises OSError, EOFError."""
    return msgspec.msgpack.decode(receive_message(sock), type=ParquetOptions)


def receive_jobs(sock: socket.socket) -> TableJobs:
    """Return the jobs of the next request. Raises OSError, EOFError."""
    head = _decode_request(receive_message(sock))
    numbers = receive(sock, _ID_BYTES * head.jobs)
    ids = [
        int.from_bytes(numbers[start : start + _ID_BYTES])
        for start in range(0, len(numbers), _ID_BYTES)
    ]
    counts = array(_COUNTS)
    counts.frombytes(receive(sock, counts.itemsize * head.jobs))
    return TableJobs(ids, counts, receive(sock, head.size))


def send_result(sock: socket.socket, content: bytes | memoryview, misfits: dict[str, int]) -> None:
    """Send an object. Raises OSError."""
    send_message(sock, _encode(EncodeResult(len(content), misfits)))
    sock.sendall(content)


def send_failure(sock: socket.socket, reason: str) -> None:
    """Send the reason for which there is no object. Raises OSError."""
    send_message(sock, _encode(EncodeFailure(reason)))
