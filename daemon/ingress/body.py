r"""Bytes and content headers in, payloads out: pure, and every limit on the way.

Payloads are cut out of the document as they are written there; nothing is parsed into
objects and printed again, so numbers, escapes, duplicate members and white space stay as
the client sent them. A string with half of a surrogate pair as an escape (``"\ud800"``) is
no Unicode text (RFC 8259, section 8.2) and is refused as malformed, wherever it stands.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, TypeVar

import zstandard
from msgspec import UNSET, DecodeError, Raw, Struct, UnsetType, ValidationError
from msgspec.json import Decoder

from daemon.ingress.problem import Problem

T = TypeVar("T")
_Body = bytes | bytearray
_Split = Callable[[_Body, int], "list[bytes | Raw]"]
_Decompress = Callable[[_Body, int], bytes]


class _Collection(Struct):
    version: str | None = None
    token: str | None = None
    payloads: list[Raw] | UnsetType = UNSET
    data: list[Raw] | UnsetType = UNSET


_COLLECTION: Final = Decoder(_Collection)
_VALUE: Final = Decoder(Raw)

# Input is fed in pieces, because what lies behind the end of a member or frame is copied each
# time: fed whole, a body of many tiny members would cost the square of its length.
_GZIP_PIECE: Final = 16384
# zstandard cannot bound what one call gives. Four bytes of a bomb give 128 KiB at most (one
# block, RFC 8878, section 3.1.1.2), so a piece oversteps the limit by no more than 4 MiB.
_ZSTD_PIECE: Final = 128
# What RFC 9659 allows for the content encoding; a decoder allocates the window that is claimed.
_ZSTD_WINDOW: Final = 8 * 2**20


def decode(
    data: _Body,
    content_type: str | None,
    content_encoding: str | None,
    max_length: int,
    start: int = 0,
) -> list[bytes | Raw]:
    """Return the payloads of a request body, each without line breaks.

    The body begins at ``start`` of ``data``: to cut off what is in front of it would be a copy.
    A Raw is where the payload is in ``data``, which is kept as long as it is. Nobody may change
    ``data`` any more.

    ``max_length`` bounds the body in bytes, before and after decompression. Raises Problem:
    UNSUPPORTED_TYPE, UNSUPPORTED_ENCODING, TOO_LARGE, MALFORMED, NOT_A_COLLECTION.
    """
    split, decompress = check_headers(content_type, content_encoding)
    if len(data) - start > max_length:
        raise too_large(max_length)
    if decompress is not None:
        data, start = decompress(data[start:], max_length), 0
    if not data.isascii():
        try:
            data[start:].decode("utf-8")  # msgspec's Raw does not look into strings
        except UnicodeDecodeError as error:
            raise Problem("MALFORMED", f"the body is not UTF-8 (byte {error.start})") from None
    return split(data, start)


@lru_cache(maxsize=64)  # asked twice a request, at 2 µs, and clients say the same each time
def check_headers(
    content_type: str | None, content_encoding: str | None
) -> tuple[_Split, _Decompress | None]:
    """Return what takes such a body apart; raises the 415 that is known before it is read."""
    split = _SPLITTERS.get(_media_type(content_type))
    if split is None:
        allowed = ", ".join(_SPLITTERS)
        shown = "there is none" if content_type is None else f"not {content_type!r}"
        detail = f"Content-Type must be one of {allowed}, in UTF-8; {shown}"
        raise Problem("UNSUPPORTED_TYPE", detail, {"Accept-Post": allowed})
    coding = _coding(content_encoding)
    if coding not in {"", *_DECOMPRESSORS}:
        detail = f"Content-Encoding must be gzip, zstd or none; not {content_encoding!r}"
        raise Problem("UNSUPPORTED_ENCODING", detail, {"Accept-Encoding": "gzip, zstd"})
    return split, _DECOMPRESSORS.get(coding)


def too_large(max_length: int, when: str = "") -> Problem:
    """Return the 413 for a body of more than ``max_length`` bytes."""
    return Problem("TOO_LARGE", f"the body is larger than {max_length} bytes{when} (MAX_LENGTH)")


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


# --- decompression -----------------------------------------------------------------------------


def _gunzip(body: _Body, max_length: int) -> bytes:
    """Decompress the members of a gzip body (RFC 1952)."""
    out = bytearray()
    member = zlib.decompressobj(wbits=31)
    position = 0
    while position < len(body):
        if member.eof:
            member = zlib.decompressobj(wbits=31)
        piece = body[position : position + _GZIP_PIECE]
        try:
            out += member.decompress(piece, max_length + 1 - len(out))
        except zlib.error as error:
            raise Problem("MALFORMED", f"the body is not gzip: {error}") from None
        if len(out) > max_length:
            raise too_large(max_length, " after decompression")
        position += len(piece) - len(member.unused_data)
    if not member.eof:
        raise Problem("MALFORMED", "the gzip body is truncated")
    return bytes(out)


def _unzstd(body: _Body, max_length: int) -> bytes:
    """Decompress the frames of a zstd body (RFC 8878)."""
    out = bytearray()
    context = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    frame = context.decompressobj()
    position = 0
    while position < len(body):
        if frame.eof:
            frame = context.decompressobj()
        piece = body[position : position + _ZSTD_PIECE]
        try:
            out += frame.decompress(piece)
        except zstandard.ZstdError as error:
            raise Problem("MALFORMED", f"the body is not zstd: {error}") from None
        if len(out) > max_length:
            raise too_large(max_length, " after decompression")
        position += len(piece) - len(frame.unused_data)
    if not frame.eof:
        raise Problem("MALFORMED", "the zstd body is truncated")
    return bytes(out)


# --- payloads ----------------------------------------------------------------------------------


def _split_json(data: _Body, start: int) -> list[bytes | Raw]:
    """Return the payloads of one JSON document with a member ``payloads`` or ``data``."""
    body = memoryview(data)[start:] if start else data
    try:
        collection = _parse(_COLLECTION, body)
    except ValidationError as error:
        # msgspec stops at the first wrong shape; what follows may be no JSON at all.
        _parse(_VALUE, body)
        raise Problem("NOT_A_COLLECTION", str(error)) from None
    match collection.payloads, collection.data:
        case (list(payloads), UnsetType()) | (UnsetType(), list(payloads)):
            if data.find(b"\n", start) >= 0 or data.find(b"\r", start) >= 0:
                return [_one_line(payload) for payload in payloads]
            return [*payloads]
        case (list(), list()):
            raise Problem("NOT_A_COLLECTION", "`payloads` and `data` are both there; send one")
        case _:
            raise Problem("NOT_A_COLLECTION", "there is no member `payloads`")


def _split_ndjson(data: _Body, start: int) -> list[bytes | Raw]:
    """Return the payloads of a body with one JSON value a line."""
    body = data[start:]
    lines: Sequence[_Body] = body.split(b"\n")
    payloads: list[bytes | Raw] = [
        _parse(_VALUE, line, f"line {number}: ")
        for number, line in enumerate(lines, start=1)
        if line.strip(b" \t\r")
    ]
    return [_one_line(payload) for payload in payloads] if b"\r" in body else payloads


def _parse(decoder: Decoder[T], text: _Body | memoryview, where: str = "") -> T:
    """Decode; raises ValidationError for JSON of another shape, Problem for what is not JSON."""
    try:
        return decoder.decode(text)
    except ValidationError:
        raise
    except DecodeError as error:
        raise Problem("MALFORMED", f"{where}{error}") from None
    except RecursionError:
        raise Problem("MALFORMED", f"{where}JSON is nested too deeply") from None


def _one_line(payload: bytes | Raw) -> bytes:
    """Return a payload without line breaks; in JSON they can stand between tokens only."""
    return bytes(payload).translate(None, b"\r\n")


_SPLITTERS: Final[dict[str, _Split]] = {
    "application/json": _split_json,
    "application/x-ndjson": _split_ndjson,
    "application/jsonl": _split_ndjson,
}
_DECOMPRESSORS: Final[dict[str, _Decompress]] = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "zstd": _unzstd,
}
