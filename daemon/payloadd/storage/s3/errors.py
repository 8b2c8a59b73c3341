"""The table of error codes: what is done with an object after each response of S3.

The outcomes are those of :class:`~payloadd.errors.UploadOutcome`. The rule for codes that are not
in the table: an error that an operator can fix never drops an object. An object is given up only
for a 400 whose body is an error document of S3: a 400 or 413 of a proxy proves nothing about the
object.

Sources, with URLs, are in README.md beside this file.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from payloadd.errors import (
    InvalidObjectError,
    OperatorStoreError,
    TransientStoreError,
    UploadOutcome,
)

if TYPE_CHECKING:
    from payloadd.errors import StoreError
    from payloadd.storage.s3.response import S3Response

_TRANSIENT: Final = UploadOutcome.TRANSIENT
_THROTTLED: Final = UploadOutcome.THROTTLED
_OPERATOR: Final = UploadOutcome.OPERATOR
_INVALID: Final = UploadOutcome.INVALID

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
    "InvalidRequest": _INVALID,
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
    if status == HTTPStatus.BAD_REQUEST and code is not None:
        return _INVALID
    return _OPERATOR


def error_of(response: S3Response) -> StoreError:
    """Return the error for a response whose status is no 2xx."""
    code = response.code or f"HTTP{response.status}"
    match outcome_of(response.status, response.code):
        case UploadOutcome.INVALID:
            return InvalidObjectError(code, response.message)
        case UploadOutcome.OPERATOR:
            return OperatorStoreError(code, response.message)
        case outcome:
            return TransientStoreError(
                code,
                response.message,
                throttled=outcome is UploadOutcome.THROTTLED,
                retry_after=response.retry_after,
            )
