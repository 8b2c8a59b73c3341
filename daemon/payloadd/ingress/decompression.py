"""Decompress request bodies, in steps and within bounds: pure.

Each step reads and writes little, so a small body that decompresses to megabytes is found before it
has cost much time or memory.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import zstandard

from payloadd.ingress.problem import Problem, too_large

if TYPE_CHECKING:
    from collections.abc import Callable

# The input is fed in pieces, because the bytes behind the end of a member or frame are copied each
# time: fed whole, a body of many tiny members would cost the square of its length.
_GZIP_PIECE: Final = 16384
# zstandard cannot bound the output of one call. Four bytes give 128 KiB at most (one block, RFC
# 8878, section 3.1.1.2), so a piece exceeds the limit by no more than 4 MiB, and a small piece by 1
# MiB.
_ZSTD_PIECE: Final = 128
_ZSTD_SMALL_PIECE: Final = 32
# The largest window that RFC 9659 allows for the content encoding; a decoder allocates the window
# that the frame claims.
_MAX_ZSTD_WINDOW: Final = 8 * 2**20

_DEFLATE_METHOD: Final = 8
_LARGEST_WINDOW: Final = 7
"""CINFO of a window of 32 KiB, the largest one (RFC 1950, section 2.2)."""

_MAX_MEMBERS: Final = 100_000
"""Members of one body: an empty one takes few bytes, but each costs time."""


class TooMuchWorkError(Exception):
    """A body needs more than the event loop's budget: decode it in another process."""


@dataclass(frozen=True, slots=True)
class DecompressionBounds:
    """The bounds of one decompression."""

    max_length: int
    """Decompressed bytes beyond which the body is refused (MAX_LENGTH)."""
    bytes: int | None = None
    """Decompressed bytes beyond which the body is too much work; None: no such bound."""
    steps: int | None = None
    """Calls of the library beyond which the body is too much work; None: no such bound."""

    def check(self, size: int, steps: int, members: int) -> None:
        """Check the progress: ``size`` bytes of so many members in ``steps`` calls.

        Raises Problem TOO_LARGE, and TooMuchWorkError.
        """
        if size > self.max_length:
            raise too_large(self.max_length, " after decompression")
        if members > _MAX_MEMBERS:
            detail = f"the body has more than {_MAX_MEMBERS} gzip members or zstd frames"
            raise Problem("TOO_LARGE", detail)
        if self.bytes is not None and size > self.bytes:
            raise TooMuchWorkError
        if self.steps is not None and steps > self.steps:
            raise TooMuchWorkError


class _Member(Protocol):
    """The decompressor of one gzip member or zstd frame."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


Member = TypeVar("Member", bound=_Member)


def gunzip(body: bytes | bytearray, bounds: DecompressionBounds) -> bytes:
    """Return the decompressed members of a gzip body (RFC 1952).

    Raises Problem MALFORMED or TOO_LARGE, and TooMuchWorkError.
    """
    most = bounds.max_length if bounds.bytes is None else min(bounds.max_length, bounds.bytes)
    return _decompress(
        partial(zlib.decompressobj, wbits=31),
        lambda member, piece, size: member.decompress(piece, most + 1 - size),
        body,
        bounds,
        _GZIP_PIECE,
        "gzip",
    )


def inflate(body: bytes | bytearray, bounds: DecompressionBounds) -> bytes:
    """Return a decompressed deflate body; raises as ``gunzip``.

    RFC 9110, section 8.4.1.2, means the zlib format (RFC 1950). Some clients send the bare deflate
    stream (RFC 1951) instead, which is recognised by the missing zlib header.
    """
    most = bounds.max_length if bounds.bytes is None else min(bounds.max_length, bounds.bytes)
    wbits = zlib.MAX_WBITS if _has_zlib_header(body) else -zlib.MAX_WBITS
    streams = 0

    def begin() -> zlib._Decompress:
        nonlocal streams
        streams += 1
        if streams > 1:
            raise Problem("MALFORMED", "bytes follow the end of the deflate body")
        return zlib.decompressobj(wbits)

    return _decompress(
        begin,
        lambda stream, piece, size: stream.decompress(piece, most + 1 - size),
        body,
        bounds,
        _GZIP_PIECE,
        "deflate",
    )


def _has_zlib_header(body: bytes | bytearray) -> bool:
    """Return whether a body begins with the two bytes of RFC 1950, section 2.2."""
    return (
        len(body) > 1
        and body[0] & 0x0F == _DEFLATE_METHOD
        and body[0] >> 4 <= _LARGEST_WINDOW
        and (body[0] << 8 | body[1]) % 31 == 0
    )


def unzstd(body: bytes | bytearray, bounds: DecompressionBounds) -> bytes:
    """Return the decompressed frames of a zstd body (RFC 8878); raises as ``gunzip``."""
    _check_announced(body, bounds)
    return _decompress(
        zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW).decompressobj,
        lambda frame, piece, _size: frame.decompress(piece),
        body,
        bounds,
        _ZSTD_PIECE if bounds.bytes is None else _ZSTD_SMALL_PIECE,
        "zstd",
    )


def _decompress(
    begin: Callable[[], Member],
    feed: Callable[[Member, bytes | bytearray, int], bytes],
    body: bytes | bytearray,
    bounds: DecompressionBounds,
    size: int,
    name: str,
) -> bytes:
    """Return a body, decompressed in pieces of ``size`` bytes.

    ``begin`` returns the decompressor of a new member. ``feed`` is called with that decompressor, a
    piece, and the number of bytes that are decompressed already. ``name`` is for messages.
    """
    out = bytearray()
    member = begin()
    position = steps = members = 0
    while position < len(body):
        if member.eof:
            member = begin()
            members += 1
        piece = body[position : position + size]
        try:
            out += feed(member, piece, len(out))
        except (zlib.error, zstandard.ZstdError) as error:
            raise Problem("MALFORMED", f"the body is not {name}: {error}") from None
        steps += 1
        bounds.check(len(out), steps, members)
        position += len(piece) - len(member.unused_data)
    if not member.eof:
        raise Problem("MALFORMED", f"the {name} body is truncated")
    return bytes(out)


def _check_announced(body: bytes | bytearray, bounds: DecompressionBounds) -> None:
    """Raise TooMuchWorkError if the first frame announces too many bytes."""
    if bounds.bytes is not None:
        try:
            announced = zstandard.frame_content_size(body)
        except zstandard.ZstdError:
            return  # the decompression reports it
        if announced > bounds.bytes:
            raise TooMuchWorkError
