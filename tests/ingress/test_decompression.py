"""Decompression in bounded steps: each bound is exact, and little memory is used before it."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Final, TypeAlias

import pytest
import zstandard

from payloadd.ingress import decompression
from payloadd.ingress.decompression import DecompressionBounds, TooMuchWorkError, gunzip, unzstd
from payloadd.ingress.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

KIB: Final = 2**10
MIB: Final = 2**20

Decompress: TypeAlias = "Callable[[bytes | bytearray, DecompressionBounds], bytes]"
Compress: TypeAlias = "Callable[[bytes], bytes]"


def zstd(data: bytes) -> bytes:
    """Return one frame that announces its size."""
    return zstandard.ZstdCompressor().compress(data)


def zstd_unannounced(data: bytes, window_log: int = 0) -> bytes:
    """Return one frame that does not announce its size."""
    parameters = zstandard.ZstdCompressionParameters(
        compression_level=3, window_log=window_log, write_content_size=False
    )
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(data) + packer.flush()


both = pytest.mark.parametrize(
    ("compress", "decompress"),
    [(gzip.compress, gunzip), (zstd, unzstd), (zstd_unannounced, unzstd)],
    ids=["gzip", "zstd", "zstd-unannounced"],
)


def code_of(decompress: Decompress, body: bytes, bounds: DecompressionBounds) -> str:
    """Return the code of the problem that a body causes."""
    with pytest.raises(Problem) as caught:
        decompress(body, bounds)
    return caught.value.code


def peak_of_too_much_work(decompress: Decompress, body: bytes, bounds: DecompressionBounds) -> int:
    """Return the bytes that a body takes in memory until it is found to be too much work."""
    tracemalloc.start()
    try:
        with pytest.raises(TooMuchWorkError):
            decompress(body, bounds)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@both
def test_the_limit_of_the_length_is_exact(compress: Compress, decompress: Decompress) -> None:
    """A body of MAX_LENGTH would be refused, or a larger one accepted."""
    body = compress(b"x" * 1000)
    assert decompress(body, DecompressionBounds(1000)) == b"x" * 1000
    assert code_of(decompress, body, DecompressionBounds(999)) == "TOO_LARGE"


@both
def test_the_budget_of_bytes_is_exact(compress: Compress, decompress: Decompress) -> None:
    """A body that fits into the event loop's budget would wait for the decoder process."""
    body = compress(b"x" * 1000)
    assert decompress(body, DecompressionBounds(MIB, 1000)) == b"x" * 1000
    with pytest.raises(TooMuchWorkError):
        decompress(body, DecompressionBounds(MIB, 999))


@pytest.mark.parametrize(
    ("pack", "decompress", "piece"),
    [(gzip.compress, gunzip, "_GZIP_PIECE"), (zstd_unannounced, unzstd, "_ZSTD_SMALL_PIECE")],
    ids=["gzip", "zstd"],
)
def test_the_budget_of_steps_is_exact(
    monkeypatch: pytest.MonkeyPatch, pack: Compress, decompress: Decompress, piece: str
) -> None:
    """A body of many tiny steps would hold the event loop."""
    body = pack(bytes(range(100)))
    size = (len(body) + 3) // 4
    monkeypatch.setattr(decompression, piece, size)
    assert decompress(body, DecompressionBounds(MIB, MIB, 4)) == bytes(range(100))
    with pytest.raises(TooMuchWorkError):
        decompress(body, DecompressionBounds(MIB, MIB, 3))


def test_only_the_decoder_process_reads_zstd_in_large_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The decoder process would need four times as many calls."""
    body = zstd_unannounced(bytes(range(256)) * 4)
    monkeypatch.setattr(decompression, "_ZSTD_PIECE", len(body))
    monkeypatch.setattr(decompression, "_ZSTD_SMALL_PIECE", 1)
    assert unzstd(body, DecompressionBounds(MIB, steps=1))
    with pytest.raises(TooMuchWorkError):
        unzstd(body, DecompressionBounds(MIB, MIB, 1))


def test_a_gzip_bomb_takes_no_more_than_the_budget() -> None:
    """Small bodies that decompress to megabytes would hold the event loop, and fill the memory."""
    body = gzip.compress(bytes(8 * MIB))
    peak = peak_of_too_much_work(gunzip, body, DecompressionBounds(16 * MIB, 64 * KIB, 512))
    assert peak < 400 * KIB


def test_a_frame_that_announces_too_much_is_not_begun() -> None:
    """Small bodies that decompress to megabytes would hold the event loop, and fill the memory."""
    body = zstd(bytes(8 * MIB))
    peak = peak_of_too_much_work(unzstd, body, DecompressionBounds(16 * MIB, 64 * KIB, 512))
    assert peak < 100 * KIB


def test_a_zstd_bomb_takes_little_more_than_the_budget() -> None:
    """Small bodies that decompress to megabytes would hold the event loop, and fill the memory."""
    body = zstd_unannounced(bytes(8 * MIB))
    peak = peak_of_too_much_work(unzstd, body, DecompressionBounds(16 * MIB, 64 * KIB, 512))
    assert peak < 3 * MIB


@pytest.mark.parametrize("announced", [64 * KIB, 64 * KIB + 1])
def test_a_frame_may_announce_the_whole_budget(announced: int) -> None:
    """A body that fits into the event loop's budget would wait for the decoder process."""
    body = zstd(bytes(announced))
    bounds = DecompressionBounds(MIB, 64 * KIB, 512)
    if announced <= 64 * KIB:
        assert len(unzstd(body, bounds)) == announced
    else:
        with pytest.raises(TooMuchWorkError):
            unzstd(body, bounds)


def test_the_window_of_a_frame_is_bounded() -> None:
    """A frame of a few bytes could make the decoder allocate gigabytes (RFC 9659)."""
    data = b"x" * 100_000
    bounds = DecompressionBounds(MIB)
    assert unzstd(zstd_unannounced(data, window_log=23), bounds) == data
    assert code_of(unzstd, zstd_unannounced(data, window_log=24), bounds) == "MALFORMED"


@both
def test_members_are_joined_wherever_they_end(
    monkeypatch: pytest.MonkeyPatch, compress: Compress, decompress: Decompress
) -> None:
    """Clients that append to a compressed file would lose a part of it."""
    members = [compress(text) for text in (b"one", b"", b"three" * 50, b"4")]
    body = b"".join(members)
    expected = b"one" + b"three" * 50 + b"4"
    for size in (1, 2, len(members[0]), len(members[0]) + 1, len(body)):
        for name in ("_GZIP_PIECE", "_ZSTD_PIECE"):
            monkeypatch.setattr(decompression, name, size)
        assert decompress(body, DecompressionBounds(1000)) == expected


@both
def test_the_number_of_members_is_bounded(
    monkeypatch: pytest.MonkeyPatch, compress: Compress, decompress: Decompress
) -> None:
    """Each empty member takes a few bytes of the body, and time."""
    monkeypatch.setattr(decompression, "_MAX_MEMBERS", 5)
    one = compress(b"")
    assert decompress(one * 5, DecompressionBounds(1000)) == b""
    assert code_of(decompress, one * 7, DecompressionBounds(1000)) == "TOO_LARGE"


@both
@pytest.mark.parametrize("in_loop", [False, True])
def test_what_is_not_whole_or_not_compressed_is_malformed(
    compress: Compress,
    decompress: Decompress,
    in_loop: bool,  # noqa: FBT001 - a parameter
) -> None:
    """A client would get a 202 for a part of its payloads, or a 500."""
    bounds = DecompressionBounds(MIB, 64 * KIB, 512) if in_loop else DecompressionBounds(MIB)
    body = compress(b"payload" * 10)
    for wrong in (
        *(body[:end] for end in range(len(body))),
        body + b"x",
        body + body[:5],
        b"no compression",
        zlib.compress(b"payload"),
    ):
        assert code_of(decompress, wrong, bounds) == "MALFORMED"


@both
def test_a_bytearray_is_decompressed_and_not_changed(
    compress: Compress, decompress: Decompress
) -> None:
    """The fast path receives a body into a bytearray."""
    body = bytearray(compress(b"payload"))
    before = bytes(body)
    assert decompress(body, DecompressionBounds(100)) == b"payload"
    assert bytes(body) == before
