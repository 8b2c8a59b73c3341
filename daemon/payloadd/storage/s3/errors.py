"""The table of error codes: what is done with an object after each response of S3.

The outcomes are those of :class:`~payloadd.errors.UploadOutcome`. An object is given up only for
the few codes of the table that are about this one object and will never change. Every other 4xx is
an error that an operator can fix: many S3 servers answer wrong keys, a wrong port or an unavailable
key service with ``InvalidArgument`` or ``InvalidRequest``.

Sources, with URLs, are in README.md beside this file.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from payloadd.errors import (
    InvalidObjectError,
    OperatorStoreError,
    TransientStoreError,
    UploadOutcome,
)
from payloadd.redaction import hide_userinfo
from payloadd.storage.s3.redirects import location_of

if TYPE_CHECKING:
    from payloadd.errors import StoreError
    from payloadd.storage.s3.response import S3Response

_TRANSIENT: Final = UploadOutcome.TRANSIENT
_THROTTLED: Final = UploadOutcome.THROTTLED
_OPERATOR: Final = UploadOutcome.OPERATOR
_INVALID: Final = UploadOutcome.INVALID
_LONGEST_LOCATION: Final = 200

BY_CODE: Final[dict[str, UploadOutcome]] = {
    # The store or the network has a short failure.
    "InternalError": _TRANSIENT,
    "ServiceUnavailable": _TRANSIENT,
    "RequestTimeout": _TRANSIENT,
    "RequestTimeoutException": _TRANSIENT,
    "OperationAborted": _TRANSIENT,
    "ConditionalRequestConflict": _TRANSIENT,
    # The bytes were damaged or cut on their way.
    "BadDigest": _TRANSIENT,
    "IncompleteBody": _TRANSIENT,
    "XAmzContentChecksumMismatch": _TRANSIENT,
    "XAmzContentSHA256Mismatch": _TRANSIENT,
    # The store asks for fewer requests.
    "Busy": _THROTTLED,
    "SlowDown": _THROTTLED,
    "SlowDownRead": _THROTTLED,
    "SlowDownWrite": _THROTTLED,
    "Throttling": _THROTTLED,
    "ThrottlingException": _THROTTLED,
    "ThrottledException": _THROTTLED,
    "RequestThrottled": _THROTTLED,
    "RequestThrottledException": _THROTTLED,
    "RequestLimitExceeded": _THROTTLED,
    "BandwidthLimitExceeded": _THROTTLED,
    "LimitExceededException": _THROTTLED,
    "TooManyRequestsException": _THROTTLED,
    "ProvisionedThroughputExceededException": _THROTTLED,
    "TransactionInProgressException": _THROTTLED,
    "PriorRequestNotComplete": _THROTTLED,
    "EC2ThrottledException": _THROTTLED,
    "KMS.ThrottlingException": _THROTTLED,
    # Sent with a 400, and an operator can fix it: region, keys, bucket, settings.
    "AuthorizationHeaderMalformed": _OPERATOR,
    "PermanentRedirect": _OPERATOR,
    "ExpiredToken": _OPERATOR,
    "ExpiredTokenException": _OPERATOR,
    "InvalidToken": _OPERATOR,
    "TokenRefreshRequired": _OPERATOR,
    "InvalidAccessKeyId": _OPERATOR,
    "SignatureDoesNotMatch": _OPERATOR,
    "RequestTimeTooSkewed": _OPERATOR,
    "CredentialsNotSupported": _OPERATOR,
    "MissingSecurityHeader": _OPERATOR,
    "IllegalLocationConstraintException": _OPERATOR,
    "IncorrectEndpoint": _OPERATOR,
    "InvalidRegionName": _OPERATOR,
    "InvalidBucketName": _OPERATOR,
    "InvalidStorageClass": _OPERATOR,
    "InvalidTag": _OPERATOR,
    "InvalidEncryptionAlgorithmError": _OPERATOR,
    "AccessControlListNotSupported": _OPERATOR,
    "QuotaExceeded": _OPERATOR,
    "XMinioAdminBucketQuotaExceeded": _OPERATOR,
    # S3 will never accept this object.
    "EntityTooLarge": _INVALID,
    "KeyTooLong": _INVALID,
    "KeyTooLongError": _INVALID,
    "MetadataTooLarge": _INVALID,
}
"""Outcomes by the error code of S3, whatever the status is."""

BY_STATUS: Final[dict[int, UploadOutcome]] = {
    HTTPStatus.REQUEST_TIMEOUT: _TRANSIENT,
    HTTPStatus.TOO_MANY_REQUESTS: _THROTTLED,
    HTTPStatus.NOT_IMPLEMENTED: _OPERATOR,
    HTTPStatus.INSUFFICIENT_STORAGE: _OPERATOR,
}
"""Outcomes by status, for codes that are not in ``BY_CODE`` and for responses without a code."""

EXPIRED_KEYS: Final = frozenset({"ExpiredToken", "ExpiredTokenException"})
REFUSED_KEYS: Final = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AccessDenied"}
)
"""Codes of S3 for keys that an operator may have replaced."""
SKEWED_CLOCK: Final = "RequestTimeTooSkewed"
NOT_S3: Final = "NOT_S3"
"""Our code: the server that answered is not S3."""
WRONG_ANSWER: Final = "WRONG_ANSWER"
"""Our code: the answer contradicts the request."""

_HINTS: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), hint)
    for pattern, hint in {
        "x-amz-(sdk-)?checksum": "the store refuses checksum headers: S3_CHECKSUM=none omits them",
        "content-md5": "the store wants Content-MD5, which is sent from now on",
        "storage-?class": "see S3_STORAGE_CLASS",
        r"x-amz-server-side-encryption|EncryptionAlgorithm|^KMS\.": "see S3_SSE, S3_SSE_KMS_KEY_ID",
        "x-amz-acl|^AccessControlList|AclWithObjectOwnership": "see S3_ACL",
        "x-amz-tagging|^InvalidTag|^TooManyTags|^TagPolicy": "see S3_TAGS",
        "x-amz-meta-|^MetadataTooLarge": "see S3_METADATA",
        "^InvalidBucketOwner|expected-bucket-owner": "see S3_EXPECTED_BUCKET_OWNER",
        "if-none-match": "see S3_IF_NONE_MATCH",
    }.items()
)
"""Settings that may cause a refusal, by a pattern of its code or its message; the first matches."""
_WISH: Final = re.compile(
    "content-md5.*required|missing.*content-?md5|requires?.*content-md5", re.IGNORECASE
)


def outcome_of(status: int, code: str | None) -> UploadOutcome:
    """Return the outcome of an upload that was refused.

    ``code`` is None for a response that is no error document of S3.
    """
    if code in BY_CODE:
        return BY_CODE[code]
    if code is not None and code.startswith("KMS."):
        return _OPERATOR
    if status in BY_STATUS:
        return BY_STATUS[status]
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _TRANSIENT
    return _OPERATOR


def error_of(response: S3Response) -> StoreError:
    """Return the error for a response whose status is no 2xx."""
    code = response.code or f"HTTP{response.status}"
    message = response.message
    hint = redirect_hint(response) or (_hint(code, message) if response.code else None)
    message += f" ({hint})" if hint else ""
    match outcome_of(response.status, response.code):
        case UploadOutcome.INVALID:
            return InvalidObjectError(code, message)
        case UploadOutcome.OPERATOR:
            return OperatorStoreError(code, message)
        case outcome:
            return TransientStoreError(
                code,
                message,
                throttled=outcome is UploadOutcome.THROTTLED,
                retry_after=response.retry_after,
            )


def wants_content_md5(response: S3Response) -> bool:
    """Return whether a refusal asks for the header Content-MD5, as for buckets with object lock."""
    if response.status != HTTPStatus.BAD_REQUEST or response.code is None:
        return False
    return _WISH.search(f"{response.code} {response.message}") is not None


def refuses_condition(response: S3Response) -> bool:
    """Return whether a refusal may be that of a server that does not know ``If-None-Match``."""
    if response.status == HTTPStatus.NOT_IMPLEMENTED:
        return True
    if response.status != HTTPStatus.BAD_REQUEST or response.code is None:
        return False
    return "if-none-match" in response.message.lower()


def _hint(code: str, message: str) -> str | None:
    """Return which setting may cause a refusal, or None."""
    for pattern, hint in _HINTS:
        if pattern.search(code) or pattern.search(message):
            return hint
    return None


def redirect_hint(response: S3Response) -> str | None:
    """Return where a redirect that was not followed leads, or None for another response."""
    location = location_of(response)
    if location is None:
        return None
    place = "".join(char for char in location if char.isprintable())[:_LONGEST_LOCATION]
    return f"redirected to {hide_userinfo(place)}, which is not followed"
