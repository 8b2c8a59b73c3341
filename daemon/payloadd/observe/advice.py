"""Say what an operator can do about a trouble, by its part and its code."""

from __future__ import annotations

import re
from typing import Final

_RIGHTS: Final = (
    "The store refuses these credentials. Give them the right s3:PutObject for the prefix, or use"
    " others; `payloadd check` tries it."
)
_KEYS: Final = (
    "The access key is wrong, disabled or expired. Set new credentials: files are read again within"
    " 10 s, environment variables (payloadd.env) at a restart."
)
_NO_KEYS: Final = (
    "Set credentials, for example AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; the reason says what"
    " was tried."
)
_REGION: Final = "The bucket is in another region: set AWS_REGION."
_ENDPOINT: Final = "Correct AWS_ENDPOINT_URL_S3 and AWS_REGION; `payloadd check` tries them."
_KMS: Final = (
    "Enable the KMS key and give these credentials the right kms:GenerateDataKey, or set another"
    " S3_SSE_KMS_KEY_ID."
)
_NETWORK: Final = (
    "The store cannot be reached. Check the network, the endpoint and the proxy; uploads go on by"
    " themselves."
)
_WAITING: Final = (
    "The store fails. If it lasts, see its own status; uploads are repeated and go on by"
    " themselves."
)
_SLOWER: Final = (
    "The store limits the rate. Larger batches need fewer uploads: raise BATCH_MAX_PAYLOADS and"
    " BATCH_LINGER."
)
_QUOTA: Final = "The bucket is full by its quota. Raise the quota, or delete objects."
_OPTION: Final = (
    "The store does not take a setting of the uploads: the reason says which; correct or unset it"
    " (S3_STORAGE_CLASS, S3_SSE, S3_ACL, S3_TAGS, S3_METADATA)."
)
_FOLDER: Final = (
    "The folder of STORE_URL cannot be written. Free space, mount it, or correct its rights;"
    " uploads go on by themselves."
)
_ANSWER: Final = "The reason says what the store answered; `payloadd check` tries an upload."

_STORE: Final = {
    **dict.fromkeys(("AccessDenied", "AllAccessDisabled", "AccountProblem"), _RIGHTS),
    **dict.fromkeys(
        (
            *("ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidToken"),
            *("SignatureDoesNotMatch", "TokenRefreshRequired", "CredentialsNotSupported"),
            "MissingSecurityHeader",
        ),
        _KEYS,
    ),
    "NoCredentials": _NO_KEYS,
    **dict.fromkeys(("AuthorizationHeaderMalformed", "PermanentRedirect"), _REGION),
    "IllegalLocationConstraintException": _REGION,
    **dict.fromkeys(("IncorrectEndpoint", "InvalidEndpoint", "InvalidRegionName"), _ENDPOINT),
    "NoSuchBucket": "Create the bucket (`payloadd check --create`), or correct STORE_URL.",
    "InvalidBucketName": "Correct the bucket of STORE_URL.",
    "RequestTimeTooSkewed": "Set the clock of this machine (NTP), or that of the store.",
    **dict.fromkeys(
        (
            *("AccessControlListNotSupported", "InvalidEncryptionAlgorithmError"),
            *("InvalidStorageClass", "InvalidTag", "MetadataTooLarge"),
        ),
        _OPTION,
    ),
    **dict.fromkeys(("QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "HTTP507"), _QUOTA),
    **dict.fromkeys(
        (
            *("Busy", "SlowDown", "SlowDownRead", "SlowDownWrite", "Throttling", "HTTP429"),
            *("ThrottlingException", "ThrottledException", "RequestThrottled"),
            *("RequestThrottledException", "RequestLimitExceeded", "BandwidthLimitExceeded"),
            *("LimitExceededException", "TooManyRequestsException", "EC2ThrottledException"),
            *("ProvisionedThroughputExceededException", "TransactionInProgressException"),
            *("PriorRequestNotComplete", "KMS.ThrottlingException"),
        ),
        _SLOWER,
    ),
    **dict.fromkeys(
        (
            *("InternalError", "ServiceUnavailable", "RequestTimeout", "RequestTimeoutException"),
            *("OperationAborted", "ConditionalRequestConflict", "BadDigest", "IncompleteBody"),
            *("XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"),
        ),
        _WAITING,
    ),
    **dict.fromkeys(("EntityTooLarge", "KeyTooLong", "KeyTooLongError"), _ANSWER),
    "CertificateError": "The certificate of the store is not trusted: set AWS_CA_BUNDLE, or correct"
    " the endpoint or the clock.",
    "ProxyError": "The proxy refuses: check HTTPS_PROXY and NO_PROXY.",
    "NoAnswer": "The store is reached and does not answer, or is very slow. See its own status, the"
    " network and the proxy; uploads go on by themselves.",
    "UploadTimeout": _NETWORK + " On a slow line raise UPLOAD_TIMEOUT.",
    "NOT_S3": "Another server answers: a login page, a proxy or a wrong port. Correct"
    " AWS_ENDPOINT_URL_S3 or the network.",
    "ENCODER_FAILED": "The process that encodes Parquet has failed. Out of memory: lower"
    " BATCH_MAX_BYTES, or raise the limit. Otherwise install payloadd[parquet] again.",
    "WRONG_ANSWER": "The answer contradicts the upload, the reason says how. Repair the store or"
    " the proxy between, or delete or rename the object.",
}
_STORE_PATTERNS: Final = (
    (re.compile(r"KMS\..*"), _KMS),
    (re.compile(r"HTTP5.."), _WAITING),
    (re.compile(r"E[A-Z0-9]+"), _FOLDER),
    (re.compile(r"\w+(?:Error|Timeout)"), _NETWORK),
)
"""Advice for codes that are not in the table: errors of KMS, of the file system, of httpx."""
_DISK: Final = (
    "The disk of STATE_DIR refuses writes. Free space or repair it; requests are accepted again by"
    " themselves."
)
_DATABASE: Final = (
    "The database of JOURNAL_URL takes no writes: the reason says why (down, full, out of reach)."
    " Requests are accepted again by themselves."
)
_READS: Final = (
    "The disk of STATE_DIR cannot be read. Repair it; reads are repeated, and requests are still"
    " accepted."
)
_JOURNAL: Final = {
    "FILE_GONE": "A file of the journal was deleted or replaced while the daemon runs: move it"
    " back, or wait until the daemon has written it again.",
    "FILE_NOT_WRITTEN": "Files of the journal were deleted and cannot be written again: the reason"
    " says why (rights, space, what is in the place); it is tried again.",
}
_MISSING: Final = (
    "The journal has lost payloads that were accepted: have them sent again, then restart the"
    " daemon; see Damage in the README."
)


def advice(part: str, code: str) -> str:
    """Return what to do about a trouble of ``part`` with this code, in one or two sentences."""
    match part:
        case "store":
            found = (text for pattern, text in _STORE_PATTERNS if pattern.fullmatch(code))
            return _STORE.get(code) or next(found, _ANSWER)
        case "journal":
            # Errors of PostgreSQL have the names of psycopg's classes.
            return _JOURNAL.get(code) or (_DISK if code.startswith("SQLITE_") else _DATABASE)
        case "journal_read":
            return _READS
        case "journal_data":
            return _MISSING
        case _:
            return "The log and the README have more about it."
