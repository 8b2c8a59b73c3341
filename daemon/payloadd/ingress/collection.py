r"""Cut payloads out of JSON and NDJSON text: pure.

A payload is cut out of the document as it is written there. No payload is parsed into objects and
printed again, so numbers, escapes, duplicate members and white space stay as the client sent them.
A string with half of a surrogate pair as an escape (``"\ud800"``) is not Unicode text (RFC 8259,
section 8.2), and is refused as malformed anywhere in the document.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from msgspec import UNSET, DecodeError, Raw, Struct, UnsetType, ValidationError
from msgspec.json import Decoder

from payloadd.ingress.decompression import TooMuchWorkError
from payloadd.ingress.problem import Problem, too_many

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

T = TypeVar("T")
BodyBytes = bytes | bytearray


class Collection(Struct):
    """A document with a collection: the payloads are in one of its arrays (``MEMBERS``)."""

    version: str | None = None
    token: str | None = None
    payloads: list[Raw] | UnsetType = UNSET
    data: list[Raw] | UnsetType = UNSET
    batch: list[Raw] | UnsetType = UNSET


class _Outline(Struct):
    """A collection whose arrays of payloads are not split."""

    version: str | None = None
    token: str | None = None
    payloads: Raw | UnsetType = UNSET
    data: Raw | UnsetType = UNSET
    batch: Raw | UnsetType = UNSET


class _MemberName(str):
    """A member's name in the outermost object; each occurrence is an object of its own."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


_COLLECTION: Final = Decoder(Collection)
_OUTLINE: Final = Decoder(_Outline)
_ARRAY: Final = Decoder(list[Raw])
_VALUE: Final = Decoder(Raw)
MEMBERS: Final = ("payloads", "data", "batch")
"""Members that may hold the payloads."""
_ARRAY_START: Final = re.compile(rb"[ \t\r\n]*+\[")

_MAX_NAMES_IN_LOOP: Final = 1000
"""Members of the outermost object that are checked in the event loop."""
_PARSED_TWICE_IN_LOOP: Final = 128 * 2**10
"""Bytes of a document that the event loop may parse a second time."""
_MAX_NAMES: Final = 100_000
_TWOMEMBERS: Final = len('{"data":[],"data":[]}') - 1
"""Bytes besides the payloads from which a document may contain a member twice."""
_LINES_WINDOW: Final = 2**18
"""Bytes of lines that are split at a time."""
_MANY_COMMAS: Final = 500_000
"""Commas from which payloads are counted before decoding: a decoded one takes more memory."""

_STRING: Final = rb'"(?:[^"\\]++|\\.)*+"'
_ARRAY_TOKEN: Final = re.compile(_STRING + rb"|[,\[\]{}]", re.DOTALL)
"""Matches the tokens that separate the elements of an array, and strings as a whole."""
_JOINED_LINES: Final = (
    "; a line holds one payload (curl removes the line breaks of a file with -d and --data, and"
    " keeps them with --data-binary)"
)
_SEVERAL: Final = (
    "; this type holds one JSON document. Lines of JSON are application/x-ndjson (curl: -H"
    " 'Content-Type: application/x-ndjson' --data-binary @FILE)"
)
_SHALLOW_LEVELS: Final = 5
_MAX_STEPS: Final = 1_000_000
"""Brackets of deeper levels that are inspected one by one."""


@cache
def _shallow_pattern() -> re.Pattern[bytes]:
    """Return the pattern that skips text and elements of up to ``_SHALLOW_LEVELS`` levels."""
    plain = rb'[^"\[\]{}]++|' + _STRING
    inner = plain
    for _ in range(_SHALLOW_LEVELS):
        inner = rb"%s|\[(?:%s)*+\]|\{(?:%s)*+\}" % (plain, inner, inner)
    return re.compile(rb"(?:%s)*+" % inner, re.DOTALL)


def payloads_of_json(data: BodyBytes, start: int, *, in_loop: bool, most: int) -> list[bytes | Raw]:
    """Return the payloads of one JSON document: an array, or an object with an array of them.

    The object's member with the payloads is ``payloads``, ``data`` or ``batch``.

    Raises Problem MALFORMED or NOT_A_COLLECTION, and TOO_LARGE for more than ``most`` payloads.
    With ``in_loop``, raises TooMuchWorkError if the document needs more than the event loop's
    budget.
    """
    body = memoryview(data)[start:] if start else data
    if not in_loop and data.count(b",", start) > _MANY_COMMAS:
        _check_count(body, most)
    once = in_loop and len(data) - start > _PARSED_TWICE_IN_LOOP
    payloads: list[Raw]
    try:
        collection = _parse(_COLLECTION, body)
    except ValidationError as error:
        # msgspec stops at an array's first byte: only arrays pay for the second attempt.
        if _ARRAY_START.match(data, start):
            payloads = _parse(_ARRAY, body)
        else:
            if once:
                raise TooMuchWorkError from None
            # msgspec stops at the first wrong shape; the text behind it may be no JSON at all.
            _parse(_VALUE, body)
            raise Problem("NOT_A_COLLECTION", str(error)) from None
    else:
        payloads = _only_array(collection, data, start, in_loop=in_loop)
        if _may_repeat_names(collection, payloads, data, start):
            if once:
                raise TooMuchWorkError
            _check_names(data, start, in_loop=in_loop)
    if len(payloads) > most:
        raise too_many(most)
    if data.find(b"\n", start) >= 0 or data.find(b"\r", start) >= 0:
        return [_one_line(payload) for payload in payloads]
    return [*payloads]


def _only_array(collection: Collection, data: BodyBytes, start: int, *, in_loop: bool) -> list[Raw]:
    """Return the payloads of a collection. Raises Problem if it has several arrays, or none."""
    payloads = collection.payloads
    if payloads is not UNSET and collection.data is UNSET and collection.batch is UNSET:
        return payloads
    arrays = [
        (name, array) for name in MEMBERS if (array := getattr(collection, name)) is not UNSET
    ]
    if not arrays:
        detail = (
            "the document has no array `payloads`, `data` or `batch`;"
            " send a document that is one payload to /v1/payload"
        )
        raise Problem("NOT_A_COLLECTION", detail)
    if len(arrays) > 1:
        _check_names(data, start, in_loop=in_loop)
        names = " and ".join(f"`{name}`" for name, _ in arrays)
        raise Problem("NOT_A_COLLECTION", f"{names} are present; send one")
    only: list[Raw] = arrays[0][1]
    return only


def payload_of_document(data: BodyBytes, start: int) -> bytes:
    """Return a JSON document of any shape as one payload. Raises Problem MALFORMED."""
    value = _parse(_VALUE, memoryview(data)[start:] if start else data)
    return _one_line(value)


def payloads_of_lines(data: BodyBytes, start: int, *, most: int) -> list[bytes | Raw]:
    """Return the payloads of a body with one JSON value a line; skips blank lines.

    Raises Problem MALFORMED, and TOO_LARGE for more than ``most`` payloads.
    """
    payloads: list[bytes | Raw] = []
    number = 1
    for window in _windows(data, start):
        lines: Sequence[BodyBytes] = window.split(b"\n")
        # The empty piece behind the last line feed of a window is no line.
        last = len(lines) - (not lines[-1])
        if window.strip(b" \t\r\n"):
            try:
                payloads += [
                    _parse(_VALUE, line, f"line {line_number}: ")
                    for line_number, line in enumerate(lines, start=number)
                    if line.strip(b" \t\r")
                ]
            except Problem as problem:
                if data.find(b"\n", start, -1) < 0 and "trailing characters" in problem.detail:
                    raise Problem(problem.code, problem.detail + _JOINED_LINES) from None
                raise
            if len(payloads) > most:
                raise too_many(most)
        number += last
    if data.find(b"\r", start) >= 0:
        return [_one_line(payload) for payload in payloads]
    return payloads


def _windows(data: BodyBytes, start: int) -> Iterator[BodyBytes]:
    """Yield the body in blocks of whole lines: many small lines, or one large line."""
    if len(data) - start <= _LINES_WINDOW:
        yield data[start:] if start else data
        return
    while start < len(data):
        end = data.rfind(b"\n", start, start + _LINES_WINDOW) + 1
        if not end:
            end = data.find(b"\n", start + _LINES_WINDOW) + 1 or len(data)
        yield data[start:end]
        start = end


def _check_count(body: BodyBytes | memoryview, most: int) -> None:
    """Raise Problem TOO_LARGE for a collection with more than ``most`` payloads.

    Counts the elements of an array that msgspec has found to be JSON, and keeps none of them in
    memory.
    """
    try:
        outline = _parse(_OUTLINE, body)
    except ValidationError:
        # An array, or of a wrong shape: then the caller names it.
        document = bytes(_parse(_VALUE, body))
        if document.startswith(b"[") and _has_more(document, most):
            raise too_many(most) from None
        return
    for array in (outline.payloads, outline.data, outline.batch):
        if isinstance(array, Raw) and _has_more(bytes(array), most):
            raise too_many(most)


def _has_more(array: bytes, most: int) -> bool:
    """Return whether a valid JSON array has more than ``most`` elements."""
    commas = steps = 0
    position = 1
    while commas < most and (found := _ARRAY_TOKEN.search(array, position)):
        position = found.end()
        match array[found.start()]:
            case 0x2C:  # a comma
                commas += 1
            case 0x5B | 0x7B:  # an opening bracket or brace
                position, more = _skip_element(array, position, _MAX_STEPS - steps)
                steps += more
    return commas >= most


def _skip_element(array: bytes, position: int, most_steps: int) -> tuple[int, int]:
    """Return the end of the element that was opened before ``position``, and the steps.

    Raises Problem TOO_LARGE after ``most_steps`` steps.
    """
    depth = 1
    steps = 0
    shallow = _shallow_pattern()
    while depth:
        found = shallow.match(array, position)
        if found is not None:
            position = found.end()
        depth += 1 if array[position] in b"[{" else -1
        position += 1
        steps += 1
        if steps > most_steps:
            raise Problem("TOO_LARGE", "the document is nested deeply in too many places")
    return position, steps


def _may_repeat_names(
    collection: Collection, payloads: Sequence[Raw], data: BodyBytes, start: int
) -> bool:
    """Return whether a member with payloads may be there twice: counts bytes only.

    A false positive costs time, a false negative would lose payloads.
    """
    # Without payloads and their commas, most documents are `{"payloads":[]}` and a few blanks: too
    # few bytes for a member twice. To search 64 KiB for the names would be slower.
    rest = len(data) - start - sum(map(len, payloads)) - len(payloads)
    if collection.version:
        rest -= len('"version":"",') + len(collection.version)
    if collection.token:
        rest -= len('"token":"",') + len(collection.token)
    if rest < _TWOMEMBERS:
        return False
    # A name without an escape for a letter (U+0061 to U+007A) is written as it is. To search for a
    # backslash alone is much faster than for more.
    escaped = data.find(b"\\", start) >= 0 and (
        data.find(b"\\u006", start) >= 0 or data.find(b"\\u007", start) >= 0
    )
    return (
        escaped
        or data.count(b'"payloads"', start) > 1
        or data.count(b'"data"', start) > 1
        or data.count(b'"batch"', start) > 1
    )


def _check_names(data: BodyBytes, start: int, *, in_loop: bool) -> None:
    """Raise Problem MALFORMED if a member with payloads is there twice, escaped or not.

    msgspec uses the last one and silently drops the others.
    """
    names: list[str] = []

    def record_name(_type: type, name: Any) -> _MemberName:  # noqa: ANN401 - msgspec's signature
        if in_loop and len(names) == _MAX_NAMES_IN_LOOP:
            raise TooMuchWorkError
        if len(names) == _MAX_NAMES:
            raise Problem("MALFORMED", f"the document has more than {_MAX_NAMES} members")
        names.append(name)
        return _MemberName(name)

    _parse(Decoder(dict[_MemberName, Raw], dec_hook=record_name), memoryview(data)[start:])
    for name in MEMBERS:
        if names.count(name) > 1:
            raise Problem("MALFORMED", f"the member `{name}` occurs {names.count(name)} times")


def _parse(decoder: Decoder[T], text: BodyBytes | memoryview, where: str = "") -> T:
    """Decode; raises ValidationError for JSON of another shape, and Problem if it is not JSON."""
    try:
        return decoder.decode(text)
    except ValidationError:
        raise
    except DecodeError as error:
        several = not where and "trailing characters" in str(error)
        raise Problem("MALFORMED", f"{where}{error}{_SEVERAL if several else ''}") from None
    except RecursionError:
        raise Problem("MALFORMED", f"{where}JSON is nested too deeply") from None


def _one_line(payload: bytes | Raw) -> bytes:
    """Return a payload without line breaks; JSON allows them only between tokens."""
    return bytes(payload).translate(None, b"\r\n")
