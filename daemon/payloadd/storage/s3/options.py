"""The headers that the settings add to requests: the object options of ``S3_*``.

Source: "PutObject" and "HeadObject", Amazon S3 API reference. All of them are signed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from payloadd.config.settings import Settings
    from payloadd.model.formats.api import EncodedObject, ObjectKind
    from payloadd.model.job import Members

META = "x-amz-meta-"
PAYLOADS, FIRST, LAST = (f"{META}{name}" for name in ("payloads", "first", "last"))
"""Metadata with the identity of a batch."""
_IDENTITY: Final = (PAYLOADS, FIRST, LAST)
_FORMAT: Final = f"{META}format"
"""Metadata with the format of an object and its version."""
IF_NONE_MATCH = "if-none-match"


class ObjectOptions(NamedTuple):
    """The headers of the settings; names are in lower case."""

    put: Mapping[str, str]
    """The headers of every PUT."""
    other: Mapping[str, str]
    """The headers of every HEAD and DELETE."""
    has_metadata: bool
    """Whether an operator chose metadata, which may be too long for a store."""
    names_compression: bool
    """Whether objects that are compressed have a ``Content-Encoding``."""

    def of_kind(self, kind: ObjectKind) -> dict[str, str]:
        """Return the headers of every PUT of an object of this kind."""
        headers = {"content-type": kind.content_type, _FORMAT: kind.version, **self.put}
        if self.names_compression and kind.compression is not None:
            headers["content-encoding"] = kind.compression
        return headers


def object_options(settings: Settings) -> ObjectOptions:
    """Return the headers for the settings."""
    other = {
        "x-amz-expected-bucket-owner": settings.s3_expected_bucket_owner,
        "x-amz-request-payer": settings.s3_request_payer,
    }
    put = {
        "x-amz-acl": settings.s3_acl,
        "x-amz-server-side-encryption": settings.s3_sse,
        "x-amz-server-side-encryption-aws-kms-key-id": settings.s3_sse_kms_key_id,
        "x-amz-storage-class": settings.s3_storage_class,
        "x-amz-tagging": settings.s3_tags,
    }
    metadata = {f"{META}{name}": value for name, value in settings.s3_metadata or ()}
    names_compression = settings.s3_content_encoding == "on"
    return ObjectOptions(
        _set(other | put) | metadata, _set(other), bool(metadata), names_compression
    )


def _set(headers: Mapping[str, str | None]) -> dict[str, str]:
    return {name: text for name, text in headers.items() if text is not None}


def has_identity(headers: Mapping[str, str]) -> bool:
    """Return whether the headers of a HEAD name a batch, this one or another one."""
    return any(name in headers for name in _IDENTITY)


def is_same_batch(headers: Mapping[str, str], members: Members) -> bool:
    """Return whether the headers of a HEAD name the batch ``members``."""
    found = headers.get(PAYLOADS), headers.get(FIRST), headers.get(LAST)
    return found == (str(members.payloads), members.first, members.last)


def describes(headers: Mapping[str, str], members: Members, body: EncodedObject) -> bool:
    """Return whether the headers of a HEAD describe the object of a batch.

    Where metadata are, the length is compared only for a kind that has the same bytes always:
    another version of a library gives other bytes for the same batch. Without metadata (of a
    version that sent none, or of a store that keeps none) an object is recognized by its length.
    """
    length = headers.get("content-length")
    if not has_identity(headers):
        return length == str(body.size)
    if body.kind.same_bytes and length not in {None, str(body.size)}:
        return False
    return is_same_batch(headers, members)


def identity(headers: Mapping[str, str]) -> str:
    """Return the identity of a batch in the headers of a HEAD, for a message."""
    found = [headers.get(name, "?")[:40] for name in _IDENTITY]
    text = "{} payloads from {} to {}".format(*found)
    return "".join(char for char in text if char.isprintable())
