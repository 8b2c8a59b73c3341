"""The envelope of a request: a JSON object around each of its payloads, which stay verbatim."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.model.job import PayloadBytes

_SUFFIX: Final = b"}"
_WINDOW: Final = 2**17
"""Bytes of long lines that are copied at a time: no other thread runs meanwhile."""
_SHORT: Final = 16
"""Bytes of a short line, in whose place more are written the larger the envelope is."""


class Envelope(NamedTuple):
    """The bytes around each payload of one request."""

    prefix: bytes
    """The object up to its last member, such as ``{"name":null,"payload":``; no line break."""

    @property
    def size(self) -> int:
        """The bytes that it adds to each payload."""
        return len(self.prefix) + len(_SUFFIX)

    def lines(self, payloads: Sequence[PayloadBytes]) -> bytes:
        """Return the payloads, at least one, as NDJSON, each of them in the envelope."""
        return b"%b%b%b\n" % (self.prefix, self._joint.join(payloads), _SUFFIX)

    def around_lines(self, lines: bytes) -> bytes:
        """Return NDJSON with each payload in the envelope.

        A payload has no line break, so the line breaks of ``lines`` are the ends of the payloads.
        """
        pieces: list[bytes] = []
        start = 0
        window = max(1, _WINDOW * _SHORT // (_SHORT + self.size))
        while start < len(lines):
            end = lines.rfind(b"\n", start, start + window) + 1
            if not end:
                end = lines.find(b"\n", start + window) + 1 or len(lines)
            text = lines[start : end - 1].replace(b"\n", self._joint)
            pieces += [self.prefix, text, _SUFFIX, b"\n"]
            start = end
        return b"".join(pieces)

    @property
    def _joint(self) -> bytes:
        """The bytes between two payloads."""
        return b"%b\n%b" % (_SUFFIX, self.prefix)
