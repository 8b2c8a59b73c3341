"""Decode request bodies in tests, with and without a head in front of them."""

from __future__ import annotations

import gzip
import zlib
from typing import Any

import pytest
import zstandard

from payloadd.ingress import body as bodies
from payloadd.ingress.decompression import TooMuchWorkError
from payloadd.ingress.problem import Problem

MIB = 2**20
MOST = 100_000
LIMITS = bodies.Limits(MIB, MOST)
TEXT = b'{"payloads":[' + b",".join([b'{"a": "some text"}'] * 500) + b"]}"


def gzipped(data: bytes) -> bytes:
    """Compress to the same bytes every time: they are part of the name of a parametrized test."""
    return gzip.compress(data, mtime=0)


def decode(
    body: bytes, content_type: str | None, content_encoding: str | None, max_length: int
) -> list[bytes]:
    """Decode, and return the payloads as bytes; behind a head the result must be the same."""
    arguments = (content_type, content_encoding, bodies.Limits(max_length, MOST))

    def found(data: bytes, start: int, *, in_loop: bool = False) -> list[bytes] | str | None:
        try:
            payloads = bodies.decode(data, *arguments, start, in_loop=in_loop)
        except Problem as problem:
            return repr((problem.status, problem.code, problem.detail))
        except TooMuchWorkError:
            return None
        return [bytes(payload) for payload in payloads]

    head = b"POST / HTTP/1.1\r\nX: \xff\r\n\r\n"
    whole = found(body, 0)
    assert whole is not None
    assert found(head + body, len(head)) == whole
    assert found(body, 0, in_loop=True) in (whole, None)
    return [*map(bytes, bodies.decode(body, *arguments))]


def from_json(body: bytes, limit: int = MIB) -> list[bytes]:
    """Decode a JSON collection."""
    return decode(body, "application/json", None, limit)


def from_lines(body: bytes) -> list[bytes]:
    """Decode NDJSON."""
    return decode(body, "application/x-ndjson", None, MIB)


def problem_of(
    body: bytes, kind: str | None = "application/json", coding: str | None = None, limit: int = MIB
) -> Problem:
    """Return the Problem of a body that must not be decodable."""
    with pytest.raises(Problem) as caught:
        decode(body, kind, coding, limit)
    return caught.value


def raw_deflate(data: bytes) -> bytes:
    """Compress as the deflate stream alone (RFC 1951), without the zlib header."""
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def bare_zstd(data: bytes, **parameters: Any) -> bytes:  # noqa: ANN401 - zstandard's own
    """Compress as a stream of unknown length, with the given parameters."""
    options = zstandard.ZstdCompressionParameters(**parameters)
    packer = zstandard.ZstdCompressor(compression_params=options).compressobj()
    return packer.compress(data) + packer.flush()
