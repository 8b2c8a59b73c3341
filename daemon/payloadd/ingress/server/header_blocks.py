"""HPACK (RFC 7541) that remembers the header blocks which a connection repeats.

A client that repeats a request sends a block of references to its earlier headers alone, and gets
such a block with each answer. A block of references changes nothing in the table of headers. So the
next block of the same bytes has the same headers, and the same headers give the same block, until
another block changes the table.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from hpack import Decoder, Encoder
from hpack.table import HeaderTable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hpack.struct import HeaderTuple

_REFERENCES: Final = re.compile(rb"[\x81-\xfe]{1,64}", re.DOTALL)
"""A header block of indexed fields of one byte each (RFC 7541, section 6.1)."""
_MOST_BLOCKS: Final = 16
"""Header blocks that are remembered for each direction of a connection."""


class RememberingDecoder(Decoder):
    """Decode the header block of each request, and remember repeated blocks."""

    def __init__(self, largest: int) -> None:
        """Allow header lists of ``largest`` bytes."""
        super().__init__(largest)
        self.known: dict[bytes, list[HeaderTuple]] = {}
        """The headers of blocks that change nothing."""
        self.valid: set[bytes] = set()
        """The known blocks whose headers are those of a valid request."""

    def decode(self, data: bytes, raw: bool = False) -> Iterable[HeaderTuple]:  # noqa: FBT001, FBT002
        """Return the headers; raises HPACKError."""
        data = bytes(data)
        if _REFERENCES.fullmatch(data) is None or not raw:
            self._forget()
            return super().decode(data, raw)
        found = self.known.get(data)
        if found is None:
            found = list(super().decode(data, raw))
            if len(self.known) >= _MOST_BLOCKS:
                self._forget()
            self.known[data] = found
        return found

    def note_valid(self, block: bytes) -> None:
        """Note that the headers of ``block``, which was decoded last, are a valid request."""
        if block in self.known:
            self.valid.add(block)

    def _forget(self) -> None:
        self.known.clear()
        self.valid.clear()


class RememberingEncoder(Encoder):
    """Encode the headers of each answer, and remember repeated ones."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[tuple[tuple[bytes, bytes], ...], bytes] = {}
        """Blocks that change nothing, by their headers."""

    @property
    def header_table_size(self) -> int:
        """The size of the table in bytes."""
        return self.header_table.maxsize

    @header_table_size.setter
    def header_table_size(self, value: int) -> None:
        """Set the size that the client allows, which may drop entries.

        An encoder may use less (RFC 7541, section 4.2). A table without bound would grow with each
        new date, and each search in it would take longer.
        """
        value = min(value, HeaderTable.DEFAULT_SIZE)
        # A second change to the same size would make hpack forget to announce the first one.
        if value != self.header_table.maxsize:
            self.known.clear()
            Encoder.header_table_size.fset(self, value)  # type: ignore[attr-defined]

    def encode(self, headers: Any, huffman: bool = True) -> bytes:  # noqa: ANN401, FBT001, FBT002 - as in hpack
        """Return the header block of ``headers``, which are a sequence of pairs of bytes."""
        key = tuple(headers)
        found = self.known.get(key)
        if found is None:
            found = super().encode(key, huffman)
            changes_nothing = _REFERENCES.fullmatch(found) is not None
            if not changes_nothing or len(self.known) >= _MOST_BLOCKS:
                self.known.clear()
            if changes_nothing:
                self.known[key] = found
        return found
