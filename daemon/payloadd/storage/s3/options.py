"""The headers that the settings add to requests: the object options of ``S3_*``.

Source: "PutObject" and "HeadObject", Amazon S3 API reference. All of them are signed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from payloadd.config.settings import Settings
    from payloadd.model.job import Members

META = "x-amz-meta-"
PAYLOADS, FIRST, LAST = (f"{META}{name}" for name in ("payloads", "first", "last"))
"""Metadata with the identity of a batch."""
IF_NONE_MATCH = "if-none-match"


class ObjectOptions(NamedTuple):
    """The headers of the settings; names are in lower case."""

    put: Mapping[str, str]
    """The headers of every PUT."""
    other: Mapping[str, str]
    """The headers of every HEAD and DELETE."""
    has_metadata: bool
    """Whether an operator chose metadata, which may be too long for a store."""


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
    return ObjectOptions(_set(other | put) | metadata, _set(other), bool(metadata))


def _set(headers: Mapping[str, str | None]) -> dict[str, str]:
    return {name: text for name, text in headers.items() if text is not None}


def is_same_batch(headers: Mapping[str, str], members: Members) -> bool:
    """Return whether the headers of a HEAD name the batch ``members``."""
    found = headers.get(PAYLOADS), headers.get(FIRST), headers.get(LAST)
    return found == (str(members.payloads), members.first, members.last)
