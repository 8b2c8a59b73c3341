"""Checksums of bodies."""

from __future__ import annotations

import base64
import hashlib
import sys
import time
import zlib
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.storage.s3.checksums import BodyHeaders, differing_checksum, digest_of, has_checksum

CHECK = [b"12345", b"", b"6789"]
"""The body of the catalogue of parametrised CRC algorithms, in pieces."""


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("crc32", "cbf43926"),
        ("crc32c", "e3069283"),
        ("crc64nvme", "ae8b14860a799888"),
        ("sha256", "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
    ],
)
def test_a_checksum_has_its_published_value(name: str, digest: str) -> None:
    """S3 would refuse every object with BadDigest."""
    function = digest_of(name)
    assert function is not None
    assert function(CHECK).hex() == digest


@given(st.lists(st.binary(max_size=50), max_size=5))
def test_pieces_have_the_checksum_of_the_whole(pieces: list[bytes]) -> None:
    """Large objects would be refused."""
    whole = b"".join(pieces)
    headers = BodyHeaders("crc32")
    values = headers.values(pieces, content_md5=True)
    found = dict(zip(headers.names(content_md5=True), values, strict=True))
    md5 = hashlib.md5(whole, usedforsecurity=False).digest()
    assert found == {
        "content-md5": base64.b64encode(md5),
        "x-amz-checksum-crc32": base64.b64encode(zlib.crc32(whole).to_bytes(4)),
        "x-amz-content-sha256": hashlib.sha256(whole).hexdigest().encode(),
    }
    assert list(found) == sorted(found), "the signature needs sorted names"


@pytest.mark.parametrize("name", ["none", "crc32c", "crc64nvme", "sha256"])
def test_names_and_values_belong_together(name: str) -> None:
    """A value would be sent under another name."""
    headers = BodyHeaders(name)
    names = headers.names(content_md5=False)
    values = headers.values(CHECK, content_md5=False)
    assert len(names) == len(values)
    assert list(names) == sorted(names)
    assert names[-1] == "x-amz-content-sha256"


def test_without_awscrt_its_checksums_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without the optional dependency would fail at the first answer of AWS."""
    monkeypatch.setitem(sys.modules, "awscrt.checksums", None)
    assert digest_of("crc64nvme") is None
    assert differing_checksum(CHECK, {"x-amz-checksum-crc64nvme": "AAAA"}) is None
    assert not has_checksum({"x-amz-checksum-crc64nvme": "AAAA"})


def test_a_checksum_does_not_slow_down_later_hashes() -> None:
    """Each SHA-256 after a CRC-32 would take a third longer on some processors."""
    digest = digest_of("crc32")
    assert digest is not None
    piece = bytes(65_536)
    for pieces in ([piece], [piece[:100]], [piece, piece[:100]]):
        after, otherwise = [], []
        # In turn, so that a busy machine slows down both.
        for _ in range(200):
            digest(pieces)
            after.append(seconds_of_sha256(piece))
            hashlib.sha512(b"").digest()  # clears the vector registers
            otherwise.append(seconds_of_sha256(piece))
        assert median(after) < 1.15 * median(otherwise)


def seconds_of_sha256(piece: bytes) -> float:
    """Return the CPU seconds of a hash."""
    start = time.thread_time()
    hashlib.sha256(piece).digest()
    return time.thread_time() - start
