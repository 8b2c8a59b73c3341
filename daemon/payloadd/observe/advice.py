"""Say what an operator can do about a trouble, by its code."""

from __future__ import annotations

from typing import Final

_RIGHTS: Final = (
    "The store refuses these credentials. Give them the right s3:PutObject for the prefix, or use"
    " others; `payloadd check` tries it."
)
_KEYS: Final = (
    "The access key is wrong, disabled or expired. Set new credentials; SIGHUP reads files again."
)
_NETWORK: Final = (
    "The store cannot be reached. Check the network, the endpoint and the proxy; uploads go on by"
    " themselves."
)
_DISK: Final = (
    "The disk of STATE_DIR refuses writes. Free space or repair it; requests are accepted again by"
    " themselves."
)
_BY_CODE: Final = {
    "AccessDenied": _RIGHTS,
    "AllAccessDisabled": _RIGHTS,
    "AccountProblem": _RIGHTS,
    "KMS.DisabledException": "Enable the KMS key, or set another S3_SSE_KMS_KEY_ID.",
    "KMS.AccessDeniedException": "Give these credentials the right kms:GenerateDataKey.",
    "NoSuchBucket": "Create the bucket (`payloadd check --create`), or correct STORE_URL.",
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "ExpiredToken": _KEYS,
    "InvalidToken": _KEYS,
    "NoCredentials": "Set credentials, for example AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
    "RequestTimeTooSkewed": "Set the clock of this machine (NTP), or that of the store.",
    "PermanentRedirect": "The bucket is in another region: set AWS_REGION.",
    "AuthorizationHeaderMalformed": "The bucket is in another region: set AWS_REGION.",
    "SlowDown": "The store limits the rate. Larger batches need fewer uploads: BATCH_MAX_PAYLOADS,"
    " BATCH_LINGER.",
    "NoAnswer": _NETWORK,
    "UploadTimeout": _NETWORK + " On a slow line raise UPLOAD_TIMEOUT.",
    "NOT_S3": "Another server answers: a login page, a proxy or a wrong port. Correct"
    " AWS_ENDPOINT_URL_S3.",
    "WRONG_ANSWER": "The store's answer contradicts the upload. Repair the store or the proxy"
    " between.",
    "ENOSPC": _DISK,
    "EDQUOT": _DISK,
    "EIO": _DISK,
    "EROFS": _DISK,
    "FILE_GONE": "A file of the journal was deleted or moved while the daemon runs: move it back,"
    " or wait until the daemon has written it again.",
    "FILE_NOT_WRITTEN": "The journal cannot be written again: the reason says why.",
    "PAYLOADS_MISSING": "The journal has lost payloads that were acknowledged: see Damage in the"
    " README.",
}
_BY_PART: Final = {
    "store": "The reason says what the store answered; `payloadd check` tries an upload.",
    "journal": _DISK,
    "journal_read": "The disk cannot be read. Repair it; it is tried again by itself.",
}


def advice(part: str, code: str) -> str:
    """Return what to do about a trouble of ``part`` with this code, in one or two sentences."""
    return _BY_CODE.get(code) or _BY_PART.get(part, "The log and the README have more about it.")
