"""Requests and responses of ``payloadd check`` that the pipeline does not need.

The pipeline needs the right to put objects alone. Reading an object back shows more: whether the
server that confirmed it is the store that has it. Sources: "HeadObject" and "CreateBucket", Amazon
S3 API reference.
"""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from payloadd.errors import OperatorStoreError
from payloadd.model.formats.api import EncodedObject
from payloadd.storage.s3.client import RequestTemplate, S3Request
from payloadd.storage.s3.endpoint import DEFAULT_REGION
from payloadd.storage.s3.errors import error_of
from payloadd.storage.s3.sigv4 import BODY_HASH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from payloadd.model.job import Members
    from payloadd.storage.s3.endpoint import BucketEndpoint
    from payloadd.storage.s3.response import S3Response

_XML: Final = "application/xml"
_HEAD: Final = RequestTemplate("HEAD", {}, (BODY_HASH,))
_CREATE: Final = RequestTemplate("PUT", {"content-type": _XML}, (BODY_HASH,))
_CONSTRAINT: Final = (
    '<CreateBucketConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    "<LocationConstraint>{}</LocationConstraint></CreateBucketConfiguration>"
)
WRONG_CONSTRAINT: Final = "InvalidLocationConstraint"
_REFUSALS: Final = {
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.METHOD_NOT_ALLOWED,
    HTTPStatus.NOT_IMPLEMENTED,
}
"""The statuses of a store that lets objects be put, and not read."""


def head_request(key: str) -> S3Request:
    """Return the request for the headers of an object."""
    return _request(_HEAD, key, b"")


def unreadable_reason(response: S3Response, body: EncodedObject, members: Members) -> str | None:
    """Return None if a HEAD's response shows the object, or the reason why it may not be read.

    Without the right to list the bucket AWS answers 403 for a missing object too. Raises
    StoreError, with the code ``WRONG_ANSWER`` for a missing or another object.
    """
    if response.status == HTTPStatus.NOT_FOUND:
        reason = "HTTP 404 to the HEAD of an object that the server has just confirmed"
        raise OperatorStoreError("WRONG_ANSWER", reason)
    if response.status == HTTPStatus.OK:
        if (difference := _difference(response.headers, body, members)) is not None:
            raise OperatorStoreError("WRONG_ANSWER", difference)
        return None
    if response.status in _REFUSALS:
        return f"HTTP {response.status}"
    raise error_of(response)


def _difference(headers: Mapping[str, str], body: EncodedObject, members: Members) -> str | None:
    """Return what in the headers of an object does not belong to the one that was put."""
    etag = headers.get("etag")
    if not etag:
        return "the response to a HEAD has no ETag: this is no S3 server"
    length = headers.get("content-length")
    if length != str(body.size):
        return f"the object has {length} bytes instead of {body.size}"
    for name, expected in (
        ("payloads", str(members.payloads)),
        ("first", members.first),
        ("last", members.last),
    ):
        # Some servers drop metadata. What they keep has to be ours.
        found = headers.get(f"x-amz-meta-{name}", expected)
        if found != expected:
            return f"the object has x-amz-meta-{name}: {found[:100]!r} instead of {expected!r}"
    return None


def create_requests(endpoint: BucketEndpoint) -> list[S3Request]:
    """Return the requests that create the bucket; each is for a ``WRONG_CONSTRAINT`` before it.

    AWS wants the region by name, unless it is the default one. Other servers may have no regions,
    and refuse a name that they do not know.
    """
    plain = _request(_CREATE, "", b"")
    if endpoint.region == DEFAULT_REGION:
        return [plain]
    named = _request(_CREATE, "", _CONSTRAINT.format(endpoint.region).encode())
    return [named] if endpoint.endpoint is None else [named, plain]


def was_created(response: S3Response) -> bool:
    """Return whether the bucket was missing and was created. Raises StoreError."""
    if response.status in (HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.NO_CONTENT):
        return True
    if response.code == "BucketAlreadyOwnedByYou":
        return False
    raise error_of(response)


def corrections(configured: BucketEndpoint, used: BucketEndpoint, clock_offset: float) -> list[str]:
    """Return a line for each value that the responses have corrected."""
    lines = []
    if used.region != configured.region:
        lines.append(f"region {used.region}, not {configured.region}: set AWS_REGION={used.region}")
    elif used.origin != configured.origin:
        lines.append(f"endpoint {used.origin}, not {configured.origin}")
    if clock_offset:
        direction = "behind" if clock_offset > 0 else "ahead of"
        seconds = round(abs(clock_offset))
        lines.append(f"clock: this machine's is {seconds} s {direction} the store's")
    return lines


def _request(template: RequestTemplate, key: str, body: bytes) -> S3Request:
    values = {BODY_HASH.encode(): hashlib.sha256(body).hexdigest().encode()}
    return S3Request(template, key, values, EncodedObject((body,), _XML, None))
