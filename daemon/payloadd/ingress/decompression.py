"""Bodies out of their Content-Encoding, in steps and within bounds.

A step is small in what it reads and in what it writes, so that a few bytes that stand for
megabytes are found out before they have cost anything.
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

# Input is fed in pieces, because what lies behind the end of a member or frame is copied each
# time: fed whole, a body of many tiny members would cost the square of its length.
_GZIP_PIECE: Final = 16384
# zstandard cannot bound what one call gives. Four bytes of a bomb give 128 KiB at most (one
# block, RFC 8878, section 3.1.1.2), so a piece oversteps the limit by no more than 4 MiB, which
# takes a millisecond, and a small piece by 1 MiB.
_ZSTD_PIECE: Final = 128
_ZSTD_SMALL_PIECE: Final = 32
# What RFC 9659 allows for the content encoding; a decoder allocates the window that is claimed.
_ZSTD_WINDOW: Final = 8 * 2**20

_MOST_MEMBERS: Final = 100_000
"""A member of nothing takes 20 bytes of a body and 2 µs."""


class TooMuchWorkError(Exception):
    """A body needs more time than the event loop has for it: decode it in another process."""


@dataclass(frozen=True, slots=True)
class DecompressionBounds:
    """The bounds of one decompression."""

    max_length: int
    """Decompressed bytes beyond which the body is refused (MAX_LENGTH)."""
    bytes: int | None = None
    """Decompressed bytes beyond which it is too much work here; None: no such bound."""
    steps: int | None = None
    """The same in calls of the library, a microsecond or two each."""

    def check(self, size: int, steps: int, members: int) -> None:
        """Raise what ``size`` bytes of so many members in ``steps`` calls come to, if too much."""
        if size > self.max_length:
            raise too_large(self.max_length, " after decompression")
        if members > _MOST_MEMBERS:
            detail = f"the body has more than {_MOST_MEMBERS} gzip members or zstd frames"
            raise Problem("TOO_LARGE", detail)
        if self.bytes is not None and size > self.bytes:
            raise TooMuchWorkError
        if self.steps is not None and steps > self.steps:
            raise TooMuchWorkError


class _Member(Protocol):
    """What decompresses one gzip member or zstd frame."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


Member = TypeVar("Member", bound=_Member)


def gunzip(body: bytes | bytearray, bounds: DecompressionBounds) -> bytes:
    """Return the members of a gzip body (RFC 1952), decompressed.

    Raises Problem MALFORMED or TOO_LARGE, and TooMuchWorkError.
    """
    most = bounds.max_length if bounds.bytes is None else min(bounds.max_length, bounds.bytes)
    return _decompress(
        partial(zlib.decompressobj, wbits=31),
        lambda member, piece, done: member.decompress(piece, most + 1 - done),
        body,
        bounds,
        _GZIP_PIECE,
        "gzip",
    )


def unzstd(body: bytes | bytearray, bounds: DecompressionBounds) -> bytes:
    """Return the frames of a zstd body (RFC 8878), decompressed; raises as ``gunzip``."""
    _check_announced(body, bounds)
    return _decompress(
        zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj,
        lambda frame, piece, _done: frame.decompress(piece),
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

    ``begin`` makes what ``feed`` decompresses a member with; the number is that of the bytes that
    are decompressed already.
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
    """Raise TooMuchWorkError where the first frame says by itself that it is too much."""
    if bounds.bytes is not None:
        try:
            announced = zstandard.frame_content_size(body)
        except zstandard.ZstdError:
            return  # which is found again
        if announced > bounds.bytes:
            raise TooMuchWorkError
