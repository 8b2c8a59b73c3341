r"""Cut the content of a file into collections.

The borders depend on the content alone, not on the time at which parts of it are read or answered:
so a second run makes the same collections, with the same Idempotency-Keys.

A file is NDJSON, or one JSON array if its first character is ``[``, unless its first line is a
whole array of at most a MiB that is followed by further lines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from msgspec import DecodeError, Raw
from msgspec.json import Decoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from payloadd.cli.sending.files import ByteSource

MOST_BYTES: Final = 2**20
"""Bytes of a collection; a longer payload is a collection of its own."""
MOST_PAYLOADS: Final = 10_000
"""Lines or elements of a collection."""
LONGEST_PAYLOAD: Final = 256 * 2**20
"""Bytes of a line or element: a longer one is refused, so that the memory is bounded."""
NDJSON: Final = "application/x-ndjson"
JSON: Final = "application/json"

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_SPACE: Final = b" \t\r\n"
_QUOTE, _COMMA, _OPEN_BRACKETS = ord('"'), ord(","), b"[{"
_TOKEN: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[,\[\]{}"]', re.DOTALL)
"""A whole string, a character that structures an array, or the quote of an unfinished string."""
_VALUE: Final = Decoder(Raw)


class CutError(Exception):
    """The content cannot be cut into payloads."""


@dataclass(frozen=True, slots=True)
class FileCollection:
    """Neighbouring lines of an NDJSON file, or elements of an array."""

    first: int
    """The number of the first line or element, from 1."""
    payloads: Sequence[bytes]
    """The lines without line feeds, some of which may be blank, or the elements."""
    media_type: str

    @property
    def end(self) -> int:
        """The number of the line or element behind the last."""
        return self.first + len(self.payloads)

    @property
    def unit(self) -> str:
        """What its payloads are in the file: ``line`` or ``element``."""
        return "element" if self.media_type == JSON else "line"

    @property
    def body(self) -> bytes:
        """The body of the request."""
        if self.media_type == JSON:
            return b"[" + b",".join(self.payloads) + b"]"
        return b"\n".join([*self.payloads, b""])

    def key(self, name: str) -> str:
        """Return the Idempotency-Key for this place of the file ``name`` with this content."""
        place = f"{name}\0{self.first}\0{self.media_type}\0"
        digest = blake2b(place.encode(errors="surrogateescape"), digest_size=24)
        digest.update(self.body)
        return f"payloadd-send-{digest.hexdigest()}"

    def since(self, first: int) -> FileCollection:
        """Return the part from the line or element ``first`` on, which must be in it."""
        return FileCollection(first, self.payloads[first - self.first :], self.media_type)

    def halves(self) -> tuple[FileCollection, FileCollection]:
        """Return its two halves; it must have two payloads at least."""
        half = len(self.payloads) // 2
        first = FileCollection(self.first, self.payloads[:half], self.media_type)
        return first, self.since(self.first + half)


class BeyondEndError(CutError):
    """The first line or element that is wanted is behind the end of the content."""


def collections(file: ByteSource, first: int = 1) -> Iterator[FileCollection]:
    """Yield the collections of a file from the line or element ``first`` on.

    Raises CutError, and what reading raises; BeyondEndError, unless ``first`` follows the last
    line: a run that was interrupted at the end of the file goes on there.
    """
    window = _Window(file)
    is_array = _is_array(window)
    end = 1
    for collection in _array(window) if is_array else _lines(window):
        end = collection.end
        if end > first:
            yield collection if collection.first >= first else collection.since(first)
    if first > end:
        unit = "elements" if is_array else "lines"
        raise BeyondEndError(f"it has {end - 1:,} {unit}; --from-line {first} is behind its end")


class _Window:
    """The part of the content that is in memory."""

    def __init__(self, file: ByteSource) -> None:
        self._file = file
        self.data = b""
        self.ended = False
        """Whether ``data`` reaches to the end of the content."""

    def fill(self, size: int) -> bool:
        """Read until ``size`` bytes are there, or the content ends; return whether they are."""
        blocks = [self.data]
        missing = size - len(self.data)
        while missing > 0 and not self.ended:
            block = self._file.read(missing)
            self.ended = not block
            blocks.append(block)
            missing -= len(block)
        self.data = b"".join(blocks)
        return missing <= 0

    def grow(self, what: str) -> bool:
        """Read twice as much, for a payload that is longer; return False at the end.

        Raises CutError if that is more than the longest payload.
        """
        if len(self.data) >= LONGEST_PAYLOAD:
            raise CutError(f"{what} is longer than {LONGEST_PAYLOAD // 2**20} MiB")
        before = len(self.data)
        self.fill(max(MOST_BYTES, 2 * before))
        return len(self.data) > before

    def drop(self, size: int) -> None:
        """Forget the first ``size`` bytes."""
        self.data = self.data[size:]


def _is_array(window: _Window) -> bool:
    """Return whether the content is one JSON array, and not lines that hold arrays."""
    window.fill(MOST_BYTES)
    start = window.data.removeprefix(_BYTE_ORDER_MARK).lstrip(_SPACE)
    if not start.startswith(b"["):
        return False
    line, line_feed, following = start.partition(b"\n")
    if not line_feed or (not following.strip(_SPACE) and window.ended):
        return True
    try:
        _VALUE.decode(line)
    except DecodeError:
        return True
    return False


def _lines(window: _Window) -> Iterator[FileCollection]:
    first = 1
    while window.fill(MOST_BYTES) or window.data:
        if window.ended and len(window.data) <= MOST_BYTES:
            size = len(window.data)
        else:
            size = window.data.rfind(b"\n", 0, MOST_BYTES) + 1
        while not size:
            searched = len(window.data)
            size = window.data.find(b"\n", MOST_BYTES) + 1
            if not size and not window.grow(f"line {first}"):
                size = searched
        lines = window.data[:size].split(b"\n", MOST_PAYLOADS)
        # The last is b"" behind the last line feed, or the lines that do not fit.
        if len(lines) > MOST_PAYLOADS or not lines[-1]:
            size -= len(lines.pop())
        yield FileCollection(first, lines, NDJSON)
        first += len(lines)
        window.drop(size)


def _array(window: _Window) -> Iterator[FileCollection]:
    first, elements, size = 1, list[bytes](), 0
    for element in _elements(window):
        size += len(element)
        if elements and (size > MOST_BYTES or len(elements) == MOST_PAYLOADS):
            yield FileCollection(first, elements, JSON)
            first += len(elements)
            elements, size = [], len(element)
        elements.append(element)
    if first > 1 or elements != [b""]:
        yield FileCollection(first, elements, JSON)


def _elements(window: _Window) -> Iterator[bytes]:
    """Yield the elements of an array as they are written; one b"" for an empty array.

    Whether an element is JSON is not checked: the daemon does.
    """
    start = window.data.index(b"[") + 1
    position, depth, number = start, 0, 1
    while True:
        data = window.data
        for token in _TOKEN.finditer(data, position):
            character = data[token.start()]
            if character == _QUOTE:
                if token.end() - token.start() == 1:
                    position = token.start()
                    break
            elif character in _OPEN_BRACKETS:
                depth += 1
            elif depth == 0:
                yield data[start : token.start()].strip(_SPACE)
                start = token.end()
                number += 1
                if character != _COMMA:
                    window.drop(start)
                    _check_end(window)
                    return
            elif character != _COMMA:
                depth -= 1
        else:
            position = len(data)
        window.drop(start)
        position, start = position - start, 0
        if not window.grow(f"element {number} of the array"):
            raise CutError(f"the array ends within its element {number}")


def _check_end(window: _Window) -> None:
    """Raise CutError if there is anything but white space behind the array."""
    while window.data or window.fill(MOST_BYTES) or window.data:
        if window.data.strip(_SPACE):
            raise CutError("there is text behind the array")
        window.drop(len(window.data))
