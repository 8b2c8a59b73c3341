"""Request bodies that cost the daemon far more than the client that sends them."""

from __future__ import annotations

import gzip
from typing import Final

import zstandard

MAX_LENGTH: Final = 16 * 2**20
"""The daemon's default."""
MAX_PAYLOADS: Final = 100_000
"""The daemon's default."""
JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"

_OPEN: Final = b'{"payloads":['
_CLOSE: Final = b"]}"
# msgspec 0.19 on CPython 3.11 accepts 996 nested arrays in the list of payloads, fewer if the
# stack is deeper.
_DEEP: Final = 900


def collection(payloads: bytes) -> bytes:
    """Return a JSON body; ``payloads`` is the text between the brackets, with commas."""
    return _OPEN + payloads + _CLOSE


def deep() -> bytes:
    """Return a body of MAX_LENGTH with payloads nested almost as deep as accepted."""
    one = b"[" * _DEEP + b"]" * _DEEP
    count = (MAX_LENGTH - len(collection(b""))) // (len(one) + 1)
    return collection(b",".join([one] * count))


def too_deep() -> bytes:
    """Return a body of MAX_LENGTH that begins arrays and ends none."""
    return _OPEN + b"[" * (MAX_LENGTH - len(_OPEN))


def members(count: int) -> bytes:
    """Return a JSON body with ``count`` payloads of one byte."""
    return collection(b",".join([b"1"] * count))


def most_members() -> bytes:
    """Return a body of MAX_LENGTH with as many payloads as fit."""
    return members((MAX_LENGTH - len(collection(b""))) // 2)


def one_wide_payload() -> bytes:
    """Return a body of MAX_LENGTH with one payload, an array of as many numbers as fit."""
    count = (MAX_LENGTH - len(collection(b"[]"))) // 2
    return collection(b"[" + b",".join([b"1"] * count) + b"]")


def lines(count: int) -> bytes:
    """Return an NDJSON body with ``count`` payloads of one byte."""
    return b"1\n" * count


def spaces(length: int) -> bytes:
    """Return a JSON body of ``length`` bytes: white space before one payload."""
    return collection(b"1").rjust(length)


def gzipped(data: bytes) -> bytes:
    """Return the body in one gzip member."""
    return gzip.compress(data, 9, mtime=0)


def gzip_members() -> bytes:
    """Return a gzip body of MAX_LENGTH: empty members, and one with a payload."""
    last = gzipped(b"1\n")
    empty = gzipped(b"")
    return empty * ((MAX_LENGTH - len(last)) // len(empty)) + last


def zstd_frames() -> bytes:
    """Return a zstd body of MAX_LENGTH: empty frames, and one with a payload."""
    last = zstandard.compress(b"1\n")
    empty = zstandard.compress(b"")
    return empty * ((MAX_LENGTH - len(last)) // len(empty)) + last


def telemetry(length: int) -> bytes:
    """Return an NDJSON body of at most ``length`` bytes, as a log shipper sends it."""
    made: list[bytes] = []
    room = length
    number = 0
    while True:
        line = (
            f'{{"timestamp":"2026-02-03T04:05:{number % 60:02d}.{number % 1000:03d}Z",'
            f'"host":"web-{number % 32:02d}.example.org","service":"checkout","level":"info",'
            f'"trace_id":"{number * 0x9E3779B97F4A7C15 % 2**128:032x}","status":200,'
            f'"duration_ms":{number % 977}.{number % 10},"bytes":{number * 37 % 65536},'
            f'"message":"GET /v1/orders/{number} took longer than expected","retry":false}}\n'
        ).encode()
        room -= len(line)
        if room < 0:
            return b"".join(made)
        made.append(line)
        number += 1


# --- requests ----------------------------------------------------------------------------------


def post(body: bytes, content_type: str, *headers: str) -> bytes:
    """Return a POST with a Content-Length."""
    return _head(content_type, f"Content-Length: {len(body)}", *headers) + body


def post_chunked(body: bytes, content_type: str, size: int = 65_536) -> bytes:
    """Return a POST with a body in chunks of ``size`` bytes."""
    pieces = (body[start : start + size] for start in range(0, len(body), size))
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return _head(content_type, "Transfer-Encoding: chunked") + chunks + b"0\r\n\r\n"


def post_without_body(length: int) -> bytes:
    """Return the head of a POST with a Content-Length of ``length``, without the body."""
    return _head(JSON, f"Content-Length: {length}")


def _head(content_type: str, *headers: str) -> bytes:
    first = ["POST /v1/payloads HTTP/1.1", "Host: bench", f"Content-Type: {content_type}"]
    return ("\r\n".join([*first, *headers]) + "\r\n\r\n").encode()
