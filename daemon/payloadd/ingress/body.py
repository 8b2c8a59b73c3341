"""Decode the payloads of a request body, within limits: pure.

A body is decoded either in the event loop, within a budget of about a millisecond, or in another
process (``large_bodies.py``) without such a budget. A thread would not help: msgspec holds Python's
lock while it parses a document. Counts of bytes, which are fast, give upper bounds of the work and
decide between the two.
"""

from __future__ import annotations

import codecs
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from payloadd.ingress.collection import (
    BodyBytes,
    payload_of_document,
    payloads_of_json,
    payloads_of_lines,
)
from payloadd.ingress.decompression import (
    DecompressionBounds,
    TooMuchWorkError,
    gunzip,
    inflate,
    unzstd,
)
from payloadd.ingress.problem import Problem, too_large

if TYPE_CHECKING:
    from collections.abc import Callable

    from msgspec import Raw

IN_LOOP_BYTES: Final = 512 * 2**10
"""Bytes of the largest body that is decoded in the event loop."""
_UNCOUNTED_BYTES: Final = 80 * 2**10
"""Bytes of a document up to which its payloads are too few to be counted before decoding."""
_IN_LOOP_COMMAS: Final = 20_000
"""Commas of a document that is decoded in the event loop."""
_IN_LOOP_LINES: Final = 4_000
"""Lines of NDJSON that are decoded in the event loop."""
IN_LOOP_DECOMPRESSED_BYTES: Final = 64 * 2**10
"""Bytes to which a body may be decompressed in the event loop."""
_IN_LOOP_STEPS: Final = 512
"""Steps of a decompression in the event loop."""

_Utf8: Final = codecs.getincrementaldecoder("utf-8")
_UTF8_WINDOW: Final = 2**20
"""Bytes that are checked at a time: as text they take up to four times as much memory."""


class Limits(NamedTuple):
    """The limits of a request."""

    max_length: int
    """Bytes of the body, before and after decompression (MAX_LENGTH)."""
    max_payloads: int
    """Number of payloads (MAX_PAYLOADS)."""


def decode(
    data: BodyBytes,
    content_type: str | None,
    content_encoding: str | None,
    limits: Limits,
    start: int = 0,
    *,
    document: bool = False,
    in_loop: bool = False,
) -> list[bytes | Raw]:
    """Return the payloads of a request body, each without line breaks.

    With ``document``, the whole body is one JSON payload. The body begins at ``start`` of ``data``:
    to cut off the bytes before it would be a copy. A Raw refers to its payload within ``data``, so
    it keeps ``data`` in memory. ``data`` must not be changed any more.

    Raises Problem: UNSUPPORTED_TYPE, UNSUPPORTED_ENCODING, TOO_LARGE, MALFORMED, NOT_A_COLLECTION.
    With ``in_loop``, raises TooMuchWorkError if the body needs more than the event loop's budget.
    """
    body_format = check_headers(content_type, content_encoding, document=document)
    if len(data) - start > limits.max_length:
        raise too_large(limits.max_length)
    if in_loop and len(data) - start > IN_LOOP_BYTES:
        raise TooMuchWorkError
    if body_format.decompress is not None:
        bounds = (
            DecompressionBounds(limits.max_length, IN_LOOP_DECOMPRESSED_BYTES, _IN_LOOP_STEPS)
            if in_loop
            else DecompressionBounds(limits.max_length)
        )
        data, start = body_format.decompress(data[start:] if start else data, bounds), 0
    if in_loop and (body_format.lines or len(data) > _UNCOUNTED_BYTES):
        _check_effort(data, start, lines=body_format.lines)
    if not data.isascii():
        _check_utf8(data, start)
        if data.startswith(codecs.BOM_UTF8, start):
            # RFC 8259, section 8.1: a parser may ignore it. Windows tools write it.
            start += len(codecs.BOM_UTF8)
    if document:
        return [payload_of_document(data, start)]
    if body_format.lines:
        return payloads_of_lines(data, start, most=limits.max_payloads)
    return payloads_of_json(data, start, in_loop=in_loop, most=limits.max_payloads)


def _check_effort(data: BodyBytes, start: int, *, lines: bool) -> None:
    """Raise TooMuchWorkError if the payloads may be too many for the event loop."""
    mark, most = (b"\n", _IN_LOOP_LINES) if lines else (b",", _IN_LOOP_COMMAS)
    if data.count(mark, start) > most:
        raise TooMuchWorkError


def _check_utf8(data: BodyBytes, start: int) -> None:
    """Raise Problem MALFORMED if the body is not UTF-8: msgspec's Raw does not check strings."""
    decoder = _Utf8()
    for position in range(start, len(data), _UTF8_WINDOW):
        rest = len(decoder.getstate()[0])
        end = position + _UTF8_WINDOW
        try:
            decoder.decode(data[position:end], final=end >= len(data))
        except UnicodeDecodeError as error:
            byte = position - start - rest + error.start
            raise Problem("MALFORMED", f"the body is not UTF-8 (byte {byte})") from None


# --- content headers ---------------------------------------------------------------------------


class BodyFormat(NamedTuple):
    """How a body is decoded."""

    lines: bool
    """Whether the body is NDJSON: one payload a line."""
    decompress: Callable[[BodyBytes, DecompressionBounds], bytes] | None
    """The function that decompresses the body; None if it is not compressed."""


JSON_TYPE: Final = "application/json"
JSON_SUFFIX: Final = "+json"
"""The end of other media types of JSON documents (RFC 6839, section 3.1)."""
NDJSON_TYPES: Final = (
    "application/x-ndjson",
    "application/ndjson",
    "application/jsonl",
    "application/json-lines",
    "application/x-json-stream",
)
ACCEPTED_TYPES: Final = ", ".join((JSON_TYPE, *NDJSON_TYPES))
"""The media types of a collection; every type that ends in ``+json`` is accepted, too."""
_DECOMPRESSORS: Final[dict[str, Callable[[BodyBytes, DecompressionBounds], bytes]]] = {
    "gzip": gunzip,
    "x-gzip": gunzip,
    "zstd": unzstd,
    "deflate": inflate,
}
IDENTITY: Final = "identity"
CODINGS: Final = (IDENTITY, *_DECOMPRESSORS)
"""The content codings of a body; the header is missing, or names one of them."""


@lru_cache(maxsize=64)  # called twice a request, and clients repeat their headers
def check_headers(
    content_type: str | None, content_encoding: str | None, *, document: bool = False
) -> BodyFormat:
    """Return the format that these headers ask for; ``document``: the body is one payload.

    Raises Problem UNSUPPORTED_TYPE or UNSUPPORTED_ENCODING, which is known before the body is read.
    """
    media_type = _media_type(content_type)
    lines = media_type in NDJSON_TYPES and not document
    if not lines and media_type != JSON_TYPE and not media_type.endswith(JSON_SUFFIX):
        allowed = JSON_TYPE if document else ACCEPTED_TYPES
        shown = "the header is missing" if content_type is None else f"not {content_type!r}"
        detail = f"Content-Type must be one of {allowed}, or end in +json, in UTF-8; {shown}"
        raise Problem("UNSUPPORTED_TYPE", detail, {"Accept-Post": allowed})
    coding = _coding(content_encoding)
    if coding not in {"", *_DECOMPRESSORS}:
        detail = (
            f"Content-Encoding must be gzip, zstd, deflate or identity; not {content_encoding!r}"
        )
        raise Problem("UNSUPPORTED_ENCODING", detail, {"Accept-Encoding": "gzip, zstd, deflate"})
    return BodyFormat(lines, _DECOMPRESSORS.get(coding))


def _media_type(content_type: str | None) -> str:
    """Return the type in lower case, without parameters; "" if the charset is not UTF-8."""
    media_type, *parameters = (content_type or "").lower().split(";")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset" and value.strip().strip('"') not in {"utf-8", "utf8"}:
            return ""
    return media_type.strip()


def _coding(content_encoding: str | None) -> str:
    """Return the coding of a body in lower case, "" for none; several are joined by commas."""
    codings = [coding.strip() for coding in (content_encoding or "").lower().split(",")]
    return ",".join(coding for coding in codings if coding not in {"", IDENTITY})
