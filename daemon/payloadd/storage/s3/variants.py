"""The headers of PUTs that depend on what the answers of a store have taught.

UNSIGNED-PAYLOAD saves the SHA-256 of each body, a large part of an upload's CPU time. S3 accepts it
over https ("Authenticating Requests", Amazon S3 API reference) and checks the body by its checksum
header. Other servers ignore checksum headers, and then nothing but the signature would protect the
body. So it is used once the store has repeated a checksum in an answer, and no longer after an
answer without one.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

from payloadd.storage.s3.checksums import has_checksum

if TYPE_CHECKING:
    from payloadd.storage.s3.response import S3Response
    from payloadd.storage.s3.sender import Learnt

_UNSIGNED_REFUSED: Final = frozenset(
    {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_IMPLEMENTED}
)
"""Statuses with which a store may refuse UNSIGNED-PAYLOAD. 403 is that of a bucket policy with the
condition ``s3:x-amz-content-sha256`` ("Bucket policy examples", Amazon S3 API reference)."""


class Variant(NamedTuple):
    """The headers of one PUT that depend on what was learnt about the store."""

    conditional: bool
    """With ``If-None-Match: *``: S3 keeps an object that exists (RFC 9110, section 13.1.2)."""
    content_md5: bool = False
    signed_body: bool = True
    """Whether the signature covers the body. False: UNSIGNED-PAYLOAD."""


class PutVariants:
    """Chooses the headers of PUTs.

    ``condition`` is a value of ``S3_IF_NONE_MATCH``. ``may_be_unsigned`` is whether bodies go over
    https with a checksum that is no SHA-256.
    """

    def __init__(self, condition: str, learnt: Learnt, *, may_be_unsigned: bool) -> None:
        self._learnt = learnt
        self.first = Variant(conditional=condition == "on")
        """The headers of a first attempt."""
        self.repeated = Variant(conditional=condition != "off")
        """The headers of a repetition."""
        self.drops_condition = condition != "on"
        """Whether a PUT is sent without its condition where the store does not know it."""
        self.awaits_checksum = may_be_unsigned
        """Whether a checksum that the store repeats would change the headers."""

    def note_checksum(self) -> None:
        """Send bodies unsigned from now on: the store has repeated a checksum."""
        if self.awaits_checksum:
            self.awaits_checksum = False
            self._replace(signed_body=False)

    def note_content_md5(self) -> None:
        """Send Content-MD5 from now on."""
        self._replace(content_md5=True)
        self._learnt.note("Content-MD5", "sent with objects, because the store requires it")

    def note_unknown_condition(self) -> None:
        """Send no condition any more."""
        self._replace(conditional=False)
        self._learnt.note("If-None-Match", "not sent, because the store does not know it")

    def note_signed_body(self) -> None:
        """Sign all bodies from now on: the store needs it."""
        self.awaits_checksum = False
        self._replace(signed_body=True)
        self._learnt.note("UNSIGNED-PAYLOAD", "not sent, because the store needs signed bodies")

    def _replace(self, **headers: bool) -> None:
        self.first = self.first._replace(**headers)
        self.repeated = self.repeated._replace(**headers)


def needs_signed_body(variant: Variant, response: S3Response) -> bool:
    """Return whether a PUT has to be sent again with a signed body.

    Either the store may have refused it because its body is not signed, or the store has not
    checked its body.
    """
    if variant.signed_body:
        return False
    if response.successful:
        return not has_checksum(response.headers)
    return response.status in _UNSIGNED_REFUSED
