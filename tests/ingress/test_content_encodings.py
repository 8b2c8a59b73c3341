"""Compressed bodies: all forms of the content encodings, and their bounds."""

from __future__ import annotations

import tracemalloc
import zlib

import pytest
import zstandard

from tests.ingress.decoding import (
    MIB,
    TEXT,
    bare_zstd,
    decode,
    gzipped,
    problem_of,
    raw_deflate,
)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (None, TEXT), ("", TEXT), ("identity", TEXT), ("gzip", gzipped(TEXT)),
        ("X-GZIP", gzipped(TEXT)), ("identity, gzip", gzipped(TEXT)),
        ("gzip", gzipped(TEXT[:9]) + gzipped(TEXT[9:])),
        ("deflate", zlib.compress(TEXT)), ("Deflate", raw_deflate(TEXT)),
        ("zstd", zstandard.compress(TEXT)), ("Zstd", bare_zstd(TEXT, write_checksum=True)),
        ("zstd", zstandard.compress(TEXT[:9]) + zstandard.compress(TEXT[9:])),
        ("zstd", bare_zstd(TEXT, window_log=23)),
    ],
)  # fmt: skip
def test_all_forms_of_the_content_encodings_are_accepted(coding: str | None, body: bytes) -> None:
    """Otherwise a client that compresses in a way that the RFCs allow would be refused."""
    assert decode(body, "application/json", coding, MIB) == [b'{"a": "some text"}'] * 500


@pytest.mark.parametrize("coding", ["br", "compress", "gzip, gzip", "zstd,gzip", "*", "gzip;q=1"])
def test_other_content_encodings_are_refused(coding: str) -> None:
    """Otherwise a client would not learn the supported encodings."""
    problem = problem_of(TEXT, coding=coding)
    assert (problem.status, problem.code) == (415, "UNSUPPORTED_ENCODING")
    assert problem.headers == {"Accept-Encoding": "gzip, zstd, deflate"}


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", b""), ("zstd", b""), ("gzip", TEXT), ("zstd", TEXT),
        ("gzip", gzipped(TEXT)[:-1]), ("zstd", zstandard.compress(TEXT)[:-1]),
        ("gzip", gzipped(TEXT) + b"rest"), ("zstd", zstandard.compress(TEXT) + b"rest"),
        ("gzip", gzipped(TEXT)[:-8] + bytes(8)), ("gzip", zlib.compress(TEXT)),
        ("deflate", b""), ("deflate", TEXT), ("deflate", zlib.compress(TEXT)[:-1]),
        ("deflate", zlib.compress(TEXT) + b"rest"), ("deflate", zlib.compress(TEXT) * 2),
        ("deflate", gzipped(TEXT)), ("deflate", raw_deflate(TEXT)[:-1]),
        ("gzip", gzipped(TEXT) * 2 + b"\x1f"), ("zstd", zstandard.compress(TEXT) + b"\x28"),
        ("zstd", bare_zstd(TEXT, window_log=24)),
    ],
)  # fmt: skip
def test_broken_compression_is_malformed(coding: str, body: bytes) -> None:
    """Otherwise half of a collection would be accepted as the whole."""
    assert problem_of(body, coding=coding).code == "MALFORMED"


def bombs() -> dict[str, bytes]:
    """Return small bodies that are 64 MiB when decompressed."""
    packer = zlib.compressobj(9, wbits=31)
    gzip_bomb = b"".join(packer.compress(bytes(MIB)) for _ in range(64)) + packer.flush()
    compressor = zstandard.ZstdCompressor().compressobj()
    zstd_bomb = b"".join(compressor.compress(bytes(MIB)) for _ in range(64)) + compressor.flush()
    return {"gzip": gzip_bomb, "zstd": zstd_bomb}


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_decompression_bomb_uses_little_memory(coding: str) -> None:
    """Otherwise one request of a few kilobytes would exhaust the memory of the process."""
    bomb = bombs()[coding]
    tracemalloc.start()
    try:
        problem = problem_of(bomb, coding=coding)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (problem.status, problem.code) == (413, "TOO_LARGE")
    assert peak < 16 * MIB


@pytest.mark.no_cover
@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_million_empty_members_take_little_time(coding: str) -> None:
    """Otherwise one body of empty members would stop the daemon for a minute."""
    one = gzipped(b"") if coding == "gzip" else zstandard.compress(b"")
    assert problem_of(one * 50_000, coding=coding).code == "MALFORMED"
    assert problem_of(one * 1_000_000, coding=coding, limit=32 * MIB).code == "TOO_LARGE"
