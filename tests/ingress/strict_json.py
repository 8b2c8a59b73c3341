"""A strict reference parser for request bodies, on Python's own json module: slow and simple."""

from __future__ import annotations

import re
from json import JSONDecodeError, JSONDecoder
from typing import Any, Final, NoReturn

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_COLLECTIONS: Final = ("payloads", "data", "batch")


class InvalidJsonError(Exception):
    """The text is not JSON (RFC 8259), or not Unicode text."""


class WrongShapeError(Exception):
    """The text is JSON, but no collection."""


class _Pairs(list[tuple[str, Any]]):
    """The members of an object, including duplicates."""


def _refuse(constant: str) -> NoReturn:
    raise InvalidJsonError(constant)


# Numbers stay as they are written: Python bounds the digits of an integer.
_DECODER: Final = JSONDecoder(
    object_pairs_hook=_Pairs, parse_constant=_refuse, parse_int=str.encode, parse_float=str.encode
)


def collection_in(body: bytes) -> list[bytes]:
    """Return the payloads of a JSON document, without line breaks.

    Raises InvalidJsonError or WrongShapeError.
    """
    text = _text(body)
    value = _value(text)
    if isinstance(value, list) and not isinstance(value, _Pairs):
        return [_one_line(payload) for payload in _elements(text, None)]
    if not isinstance(value, _Pairs):
        raise WrongShapeError(type(value).__name__)
    for name, member in value:
        allowed: tuple[type, ...] = (list,)
        if name in ("version", "token"):
            allowed = (str, type(None))
        elif name not in _COLLECTIONS:
            continue
        # An object is a list here, too.
        if not isinstance(member, allowed) or isinstance(member, _Pairs):
            raise WrongShapeError(name)
    named = [name for name, _ in value if name in _COLLECTIONS]
    if len(named) != 1:
        raise WrongShapeError(repr(named))
    return [_one_line(payload) for payload in _elements(text, named[0])]


def document_in(body: bytes) -> bytes:
    """Return a JSON document as one payload, without line breaks. Raises InvalidJsonError."""
    text = _text(body)
    _value(text)
    return _one_line(text.strip(" \t\r\n"))


def lines_in(body: bytes) -> list[bytes]:
    """Return the payloads of an NDJSON document. Raises InvalidJsonError."""
    lines = (line.strip(" \t\r") for line in _text(body).split("\n"))
    payloads = [line for line in lines if line]
    for payload in payloads:
        _value(payload)
    return [_one_line(payload) for payload in payloads]


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InvalidJsonError(str(error)) from None


def _value(text: str) -> Any:  # noqa: ANN401 - JSON
    try:
        value = _DECODER.decode(text)
        _check_strings(value)
    except (JSONDecodeError, RecursionError, UnicodeEncodeError) as error:
        raise InvalidJsonError(str(error)) from None
    return value


def _check_strings(value: Any) -> None:  # noqa: ANN401 - JSON
    """Raise UnicodeEncodeError for half of a surrogate pair."""
    match value:
        case str():
            value.encode()
        case _Pairs():
            for name, member in value:
                name.encode()
                _check_strings(member)
        case list():
            for element in value:
                _check_strings(element)


def _elements(text: str, wanted: str | None) -> list[str]:
    """Return the elements of the array that is the member ``wanted``, as they are written.

    The text must be a JSON object with such a member, or an array if ``wanted`` is None.
    """
    position = _skip_space(text, 0)
    if wanted is not None:
        position = _skip_space(text, position + 1)
    while wanted is not None:
        name, position = _DECODER.raw_decode(text, position)
        position = _skip_space(text, _skip_space(text, position) + 1)
        if name == wanted:
            break
        _, position = _DECODER.raw_decode(text, position)
        position = _skip_space(text, _skip_space(text, position) + 1)
    found = []
    position = _skip_space(text, position + 1)
    while text[position] != "]":
        end = _DECODER.raw_decode(text, position)[1]
        found.append(text[position:end])
        position = _skip_space(text, end)
        if text[position] == ",":
            position = _skip_space(text, position + 1)
    return found


def _skip_space(text: str, position: int) -> int:
    found = _SPACE.match(text, position)
    return position if found is None else found.end()


def _one_line(payload: str) -> bytes:
    return payload.replace("\n", "").replace("\r", "").encode()
