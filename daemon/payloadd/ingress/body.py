"""Bytes and content headers in, payloads out: pure, and every limit on the way.

A body is decoded either in the event loop, where it may take 2 ms, or in another process
(``large_bodies.py``), where it may take what it takes: msgspec holds Python's lock for as long as
a document is long, so that a thread would stop the event loop as well. Upper bounds, which are
counts of bytes at C speed, decide.
"""

from __future__ import annotations

import codecs
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from payloadd.ingress.collection import BodyBytes, payloads_of_json, payloads_of_lines
from payloadd.ingress.decompression import DecompressionBounds, TooMuchWorkError, gunzip, unzstd
from payloadd.ingress.problem import Problem, too_large

if TYPE_CHECKING:
    from collections.abc import Callable

    from msgspec import Raw

_IN_LOOP_BYTES: Final = 512 * 2**10
"""A body of so many bytes takes a millisecond: msgspec checks 600 bytes in one microsecond."""
_UNCOUNTED_BYTES: Final = 80 * 2**10
"""Up to here a document's payloads need not be counted beforehand: 40,000 take 1.5 ms."""
_IN_LOOP_COMMAS: Final = 20_000
_IN_LOOP_LINES: Final = 4_000
"""Lines of NDJSON that are decoded in a millisecond."""
IN_LOOP_BOUNDS: Final = 64 * 2**10
"""Bytes that a body may be decompressed to in the event loop, in at most so many steps: 1 ms."""
_IN_LOOP_STEPS: Final = 512

_Utf8: Final = codecs.getincrementaldecoder("utf-8")
_WINDOW: Final = 2**20
"""Bytes that are looked at at once: as text they take up to four times as much."""


class Limits(NamedTuple):
    """What a request may have."""

    max_length: int
    """Bytes of its body, before and after decompression (MAX_LENGTH)."""
    max_payloads: int
    """Payloads (MAX_PAYLOADS)."""


def decode(
    data: BodyBytes,
    content_type: str | None,
    content_encoding: str | None,
    limits: Limits,
    start: int = 0,
    *,
    in_loop: bool = False,
) -> list[bytes | Raw]:
    """Return the payloads of a request body, each without line breaks.

    The body begins at ``start`` of ``data``: to cut off what is in front of it would be a copy.
    A Raw is where the payload is in ``data``, which is kept as long as it is. ``data`` must not
    be changed any more.

    Raises Problem: UNSUPPORTED_TYPE, UNSUPPORTED_ENCODING, TOO_LARGE, MALFORMED,
    NOT_A_COLLECTION. Raises TooMuchWorkError where that is more than the event loop has time for
    and ``in_loop`` is set.
    """
    kind = check_headers(content_type, content_encoding)
    if len(data) - start > limits.max_length:
        raise too_large(limits.max_length)
    if in_loop and len(data) - start > _IN_LOOP_BYTES:
        raise TooMuchWorkError
    if kind.decompress is not None:
        bounds = (
            DecompressionBounds(limits.max_length, IN_LOOP_BOUNDS, _IN_LOOP_STEPS)
            if in_loop
            else DecompressionBounds(limits.max_length)
        )
        data, start = kind.decompress(data[start:] if start else data, bounds), 0
    if in_loop and (kind.lines or len(data) > _UNCOUNTED_BYTES):
        _check_effort(data, start, lines=kind.lines)
    if not data.isascii():
        _check_utf8(data, start)
    if kind.lines:
        return payloads_of_lines(data, start, most=limits.max_payloads)
    return payloads_of_json(data, start, in_loop=in_loop, most=limits.max_payloads)


def _check_effort(data: BodyBytes, start: int, *, lines: bool) -> None:
    """Raise TooMuchWorkError where the payloads may be too many for the event loop."""
    mark, most = (b"\n", _IN_LOOP_LINES) if lines else (b",", _IN_LOOP_COMMAS)
    if data.count(mark, start) > most:
        raise TooMuchWorkError


def _check_utf8(data: BodyBytes, start: int) -> None:
    """Raise Problem MALFORMED for what is not UTF-8: msgspec's Raw does not look into strings."""
    decoder = _Utf8()
    for position in range(start, len(data), _WINDOW):
        rest = len(decoder.getstate()[0])
        end = position + _WINDOW
        try:
            decoder.decode(data[position:end], final=end >= len(data))
        except UnicodeDecodeError as error:
            byte = position - start - rest + error.start
            raise Problem("MALFORMED", f"the body is not UTF-8 (byte {byte})") from None


# --- what the content headers say --------------------------------------------------------------


class Kind(NamedTuple):
    """How a body is to be taken apart."""

    lines: bool
    """Whether it is NDJSON: one payload a line."""
    decompress: Callable[[BodyBytes, DecompressionBounds], bytes] | None


_LINES: Final = {
    "application/json": False,
    "application/x-ndjson": True,
    "application/jsonl": True,
}
_DECOMPRESSORS: Final[dict[str, Callable[[BodyBytes, DecompressionBounds], bytes]]] = {
    "gzip": gunzip,
    "x-gzip": gunzip,
    "zstd": unzstd,
}


@lru_cache(maxsize=64)  # asked twice a request, at 2 µs, and clients say the same each time
def check_headers(content_type: str | None, content_encoding: str | None) -> Kind:
    """Return what these headers ask for; raises the 415 that is known before the body is read."""
    lines = _LINES.get(_media_type(content_type))
    if lines is None:
        allowed = ", ".join(_LINES)
        shown = "there is none" if content_type is None else f"not {content_type!r}"
        detail = f"Content-Type must be one of {allowed}, in UTF-8; {shown}"
        raise Problem("UNSUPPORTED_TYPE", detail, {"Accept-Post": allowed})
    coding = _coding(content_encoding)
    if coding not in {"", *_DECOMPRESSORS}:
        detail = f"Content-Encoding must be gzip, zstd or none; not {content_encoding!r}"
        raise Problem("UNSUPPORTED_ENCODING", detail, {"Accept-Encoding": "gzip, zstd"})
    return Kind(lines, _DECOMPRESSORS.get(coding))


def _media_type(content_type: str | None) -> str:
    """Return the type in lower case, without parameters; "" where the charset is not UTF-8."""
    media_type, *parameters = (content_type or "").lower().split(";")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip().strip('"') not in {"utf-8", "utf8"}:
            return ""
    return media_type.strip()


def _coding(content_encoding: str | None) -> str:
    """Return the one coding of a body in lower case, "" for none; several stay a list."""
    codings = [coding.strip() for coding in (content_encoding or "").lower().split(",")]
    return ",".join(coding for coding in codings if coding not in {"", "identity"})
