"""What confirms a PUT: only S3's own answer does.

S3 answers a PutObject with 200, an ETag and no body ("PutObject", Amazon S3 API reference). A
captive portal, a web server or the wrong port of a server answers with 200, 201 or 204 too. What
the answer says about the object has to agree with what was sent: a checksum that it repeats, or an
ETag that is an MD5.
"""

from __future__ import annotations

import re
from binascii import a2b_base64, hexlify
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from payloadd.errors import OperatorStoreError
from payloadd.storage.s3.checksums import CONTENT_MD5, differing_checksum, has_checksum, md5
from payloadd.storage.s3.errors import NOT_S3, WRONG_ANSWER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from payloadd.storage.http1.response import ResponseParser
    from payloadd.storage.s3.request import S3Request
    from payloadd.storage.s3.response import S3Response

_ERROR: Final = re.compile(rb"<(?:\w+:)?Error[\s>/]")
_XML: Final = re.compile(rb"\s*(?:<\?xml|<PutObject)")
_HTML: Final = re.compile(rb"<(?:!doctype\s+)?html", re.IGNORECASE)
_MD5: Final = re.compile(r'"?([0-9a-f]{32})"?', re.IGNORECASE)
_SSE: Final = "x-amz-server-side-encryption"
_ETAG: Final = b'\r\netag: "'
MD5_IN_LOOP: Final = 16_384
"""Bytes of a body whose MD5 is computed in the event loop; of a larger body, in a thread."""


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


def problem_of(response: S3Response, request: S3Request, origin: str) -> OperatorStoreError | None:
    """Return why a successful answer to a PUT does not confirm it, or None.

    An ETag that may be an MD5 is not compared here. ``origin`` is the server that answered.
    """
    what = f"HTTP {response.status} from {origin}"
    if _ERROR.search(response.body):
        return OperatorStoreError(WRONG_ANSWER, f"{what} with an error document, {response.code}")
    if response.status != HTTPStatus.OK or not response.headers.get("etag", "").strip('" '):
        return _not_s3(response, f"{what} without an ETag" if _ok(response) else what)
    body = response.body
    if body.strip() and (_HTML.search(body) or not _XML.match(body)):
        return _not_s3(response, f"{what} with a body")
    differing = differing_checksum(request.body.pieces, response.headers)
    if differing is not None:
        return OperatorStoreError(WRONG_ANSWER, f"{what}: {differing} is not that of the object")
    return None


def _ok(response: S3Response) -> bool:
    return response.status == HTTPStatus.OK


def _not_s3(response: S3Response, what: str) -> OperatorStoreError:
    kind = response.headers.get("content-type", "")[:64]
    kind = "".join(char for char in kind if char.isprintable())
    return OperatorStoreError(
        NOT_S3,
        f"{what}{f', {kind}' if kind else ''} is no answer of S3 to a PutObject:"
        " is the endpoint's host and port that of S3?",
    )


def comparable_md5(headers: Mapping[str, str]) -> bytes | None:
    """Return the MD5 that an ETag may be, as hex; None if there is nothing to compare.

    A repeated checksum was compared already, and is better. With another encryption than AES256
    an ETag has as many digits and is no MD5 ("Common response headers", Amazon S3 API reference).
    """
    match = _MD5.fullmatch(headers.get("etag", ""))
    if match is None or headers.get(_SSE, "AES256") != "AES256" or has_checksum(headers):
        return None
    if f"{_SSE}-customer-algorithm" in headers:
        return None
    return match[1].lower().encode()


def md5_of(request: S3Request) -> bytes | None:
    """Return the MD5 of a body as hex; None where the system forbids MD5."""
    sent = request.value(CONTENT_MD5)
    try:
        return hexlify(md5(request.body.pieces) if sent is None else a2b_base64(sent))
    except ValueError:
        return None


def wrong_etag(response: S3Response, origin: str) -> OperatorStoreError:
    """Return the error for an ETag that is the MD5 of another object."""
    etag = response.headers.get("etag", "")[:40]
    return OperatorStoreError(
        WRONG_ANSWER, f"HTTP {response.status} from {origin}: the ETag {etag} is another object's"
    )
