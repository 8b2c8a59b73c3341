"""NDJSON to the bytes of an object."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from payloadd.model.formats.ndjson import SUFFIXES, encode

if TYPE_CHECKING:
    from payloadd.config.parsers import Compression


@given(st.lists(st.binary(max_size=2000)))
def test_what_went_in_comes_out(lines: list[bytes]) -> None:
    """Readers would get other bytes than the ones that were posted."""
    whole = b"".join(lines)
    plain, gzipped, zstd = (encode(lines, one) for one in SUFFIXES)
    assert b"".join(plain.pieces) == whole
    assert gzip.decompress(b"".join(gzipped.pieces)) == whole
    assert zstandard.ZstdDecompressor().decompress(b"".join(zstd.pieces)) == whole
    assert gzipped.size == len(b"".join(gzipped.pieces))


@pytest.mark.parametrize("compression", SUFFIXES)
def test_the_same_lines_give_the_same_bytes(compression: Compression) -> None:
    """A replay after a crash would put other bytes under the same key."""
    first = encode([b'{"a":1}\n' * 100], compression)
    with patch("time.time", lambda: 0.0):
        again = encode([b'{"a":1}\n' * 100], compression)

    assert first == again
    assert first.content_encoding == (None if compression == "none" else compression)
