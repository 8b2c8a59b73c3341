"""THE table: what is done about each thing that S3 can say.

Three fates, see :mod:`payloadd.errors`. The rule where the table is silent: what an operator
can mend is never dropped, so an object is given up only for a 400 that is S3's own
word. A proxy's 400 or 413 proves nothing about the object.

Sources: "Error responses" of the S3 API reference; the throttling and transient codes of
the SDKs' standard retry mode ("Retry behavior", AWS SDKs and Tools reference guide).
"""

from __future__ import annotations

from enum import Enum, auto
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from payloadd.errors import InvalidObjectError, OperatorStoreError, TransientStoreError

if TYPE_CHECKING:
    from payloadd.errors import StoreError
    from payloadd.storage.s3.response import Answer


class Fate(Enum):
    """What becomes of an object that was not stored."""

    SOON = auto()
    LESS = auto()
    """Soon, and the store asks for less."""
    MEND = auto()
    NEVER = auto()


BY_CODE: Final[dict[str, Fate]] = {
    # The store or the network had a bad moment.
    "InternalError": Fate.SOON,
    "ServiceUnavailable": Fate.SOON,
    "RequestTimeout": Fate.SOON,
    "RequestTimeoutException": Fate.SOON,
    "OperationAborted": Fate.SOON,
    "ConditionalRequestConflict": Fate.SOON,
    # The bytes were damaged or cut on the way.
    "BadDigest": Fate.SOON,
    "IncompleteBody": Fate.SOON,
    "XAmzContentChecksumMismatch": Fate.SOON,
    "XAmzContentSHA256Mismatch": Fate.SOON,
    # The store asks for less.
    "SlowDown": Fate.LESS,
    "SlowDownRead": Fate.LESS,
    "SlowDownWrite": Fate.LESS,
    "Throttling": Fate.LESS,
    "ThrottlingException": Fate.LESS,
    "ThrottledException": Fate.LESS,
    "RequestThrottled": Fate.LESS,
    "RequestThrottledException": Fate.LESS,
    "RequestLimitExceeded": Fate.LESS,
    "BandwidthLimitExceeded": Fate.LESS,
    "LimitExceededException": Fate.LESS,
    "TooManyRequestsException": Fate.LESS,
    "ProvisionedThroughputExceededException": Fate.LESS,
    "TransactionInProgressException": Fate.LESS,
    "PriorRequestNotComplete": Fate.LESS,
    "EC2ThrottledException": Fate.LESS,
    "KMS.ThrottlingException": Fate.LESS,
    # Answered with a 400, and yet somebody can mend it: region, keys, bucket, settings.
    "AuthorizationHeaderMalformed": Fate.MEND,
    "PermanentRedirect": Fate.MEND,
    "ExpiredToken": Fate.MEND,
    "ExpiredTokenException": Fate.MEND,
    "InvalidToken": Fate.MEND,
    "TokenRefreshRequired": Fate.MEND,
    "InvalidAccessKeyId": Fate.MEND,
    "SignatureDoesNotMatch": Fate.MEND,
    "RequestTimeTooSkewed": Fate.MEND,
    "CredentialsNotSupported": Fate.MEND,
    "MissingSecurityHeader": Fate.MEND,
    "IllegalLocationConstraintException": Fate.MEND,
    "IncorrectEndpoint": Fate.MEND,
    "InvalidRegionName": Fate.MEND,
    "InvalidBucketName": Fate.MEND,
    "InvalidStorageClass": Fate.MEND,
    "InvalidTag": Fate.MEND,
    "InvalidEncryptionAlgorithmError": Fate.MEND,
    "AccessControlListNotSupported": Fate.MEND,
    "QuotaExceeded": Fate.MEND,
    "XMinioAdminBucketQuotaExceeded": Fate.MEND,
    # S3's word that this object will never be taken.
    "EntityTooLarge": Fate.NEVER,
    "InvalidRequest": Fate.NEVER,
    "KeyTooLongError": Fate.NEVER,
    "MetadataTooLarge": Fate.NEVER,
}

BY_STATUS: Final[dict[int, Fate]] = {
    HTTPStatus.REQUEST_TIMEOUT: Fate.SOON,
    HTTPStatus.TOO_MANY_REQUESTS: Fate.LESS,
    HTTPStatus.NOT_IMPLEMENTED: Fate.MEND,
    HTTPStatus.INSUFFICIENT_STORAGE: Fate.MEND,
}

EXPIRED_KEYS: Final = frozenset({"ExpiredToken", "ExpiredTokenException"})
SKEWED_CLOCK: Final = "RequestTimeTooSkewed"


def fate_of(status: int, code: str | None) -> Fate:
    """Return what becomes of an object; ``code`` is None when S3 itself said nothing."""
    if code in BY_CODE:
        return BY_CODE[code]
    if code is not None and code.startswith("KMS."):
        return Fate.MEND
    if status in BY_STATUS:
        return BY_STATUS[status]
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Fate.SOON
    if status == HTTPStatus.BAD_REQUEST and code is not None:
        return Fate.NEVER
    return Fate.MEND


def error_of(answer: Answer) -> StoreError:
    """Return the error that an answer other than a 2xx stands for."""
    code = answer.code or f"HTTP{answer.status}"
    match fate_of(answer.status, answer.code):
        case Fate.NEVER:
            return InvalidObjectError(code, answer.message)
        case Fate.MEND:
            return OperatorStoreError(code, answer.message)
        case fate:
            return TransientStoreError(
                code,
                answer.message,
                throttled=fate is Fate.LESS,
                retry_after=answer.retry_after,
            )
