"""S3's confirmation of a PUT, recognized without reading the whole answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from payloadd.storage.http1.response import ResponseParser

_ETAG: Final = b'\r\netag: "'


class Glance:
    """Recognizes S3's confirmation by a few searches in the bytes of an answer.

    To parse the headers of an answer for each object was measurable. The two lines that matter are
    searched in the spelling that the store used last: a server always writes its headers alike.
    """

    def __init__(self, checksum: str, position: int) -> None:
        """``checksum`` is the header that S3 repeats, ``position`` that of its value."""
        self._lower = b"\r\n%b: " % checksum.encode("ascii")
        self._position = position
        self._echo = self._lower
        self._etag = _ETAG

    def confirms(self, parsed: ResponseParser, values: tuple[bytes, ...]) -> bool:
        """Return whether an answer to a PUT confirms it. False: the answer has to be read."""
        received = parsed.received
        # No interim response: its lines would be searched too.
        if parsed.body or not received.startswith(b"HTTP/1.1 200 "):
            return False
        line = b"%b%b\r\n" % (self._echo, values[self._position])
        if line in received and self._etag in received:
            return True
        if not self._learn_spelling(received):
            return False
        line = b"%b%b\r\n" % (self._echo, values[self._position])
        return line in received and self._etag in received

    def _learn_spelling(self, received: bytes) -> bool:
        """Note how the store writes the names of the headers; return whether that is new."""
        lower = received.lower()
        echo, etag = lower.find(self._lower), lower.find(_ETAG)
        if echo < 0 or etag < 0:
            return False
        before = self._echo, self._etag
        self._echo = received[echo : echo + len(self._lower)]
        self._etag = received[etag : etag + len(_ETAG)]
        return before != (self._echo, self._etag)
