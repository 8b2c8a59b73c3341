"""The creation of a bucket, for ``payloadd check --create``.

Source: "CreateBucket", Amazon S3 API reference.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

from payloadd.errors import OperatorStoreError
from payloadd.model.formats.api import EncodedObject, ObjectKind
from payloadd.storage.s3.endpoint import DEFAULT_REGION
from payloadd.storage.s3.errors import NOT_S3, error_of
from payloadd.storage.s3.request import RequestTemplate, S3Request
from payloadd.storage.s3.sigv4 import BODY_HASH

if TYPE_CHECKING:
    from payloadd.storage.s3.aws_config import AwsConfiguration
    from payloadd.storage.s3.response import S3Response
    from payloadd.storage.s3.sender import Sender

_XML: Final = "application/xml"
_CREATE: Final = RequestTemplate("PUT", {"content-type": _XML}, (BODY_HASH,))
_CONSTRAINT: Final = (
    '<CreateBucketConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<LocationConstraint>{}</LocationConstraint></CreateBucketConfiguration>"
)
_UNKNOWN_REGION: Final = "InvalidLocationConstraint"


async def create_bucket(sender: Sender) -> bool:
    """Create the bucket of ``sender``, and return whether it was missing. Raises StoreError."""
    first, *others = _requests(sender.configuration)
    response = await _send(sender, first)
    for request in others:
        if response.code == _UNKNOWN_REGION:
            response = await _send(sender, request)
    if response.code == "BucketAlreadyOwnedByYou":
        return False
    if not response.successful:
        raise error_of(response)
    if response.body.strip() and not response.body.lstrip().startswith(b"<?xml"):
        reason = f"HTTP {response.status} from {sender.origin} is no answer of S3 to a CreateBucket"
        raise OperatorStoreError(NOT_S3, reason)
    return True


def _requests(configuration: AwsConfiguration) -> list[S3Request]:
    """Return the requests that create the bucket; the second is for a refusal of the region.

    AWS wants the region by name, unless it is the default one. Other servers may have no regions,
    and refuse a name that they do not know.
    """
    region = configuration.region or DEFAULT_REGION
    if region == DEFAULT_REGION:
        return [_request("")]
    named = _request(_CONSTRAINT.format(region))
    return [named] if configuration.endpoint is None else [named, _request("")]


def _request(document: str) -> S3Request:
    body = document.encode()
    values = (hashlib.sha256(body).hexdigest().encode(),)
    return S3Request(_CREATE, "", values, EncodedObject((body,), ObjectKind(_XML, "")))


async def _send(sender: Sender, request: S3Request) -> S3Response:
    response = await sender.send(request)
    assert response is not None  # noqa: S101 - only PUTs with a checksum are confirmed at a glance
    return response
