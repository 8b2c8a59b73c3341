"""Every error code of S3's documentation, with the fate of an object that gets it.

Source: "Error responses", Amazon S3 API reference: the lists of S3, replication and tagging errors.
Most codes belong to other operations than PutObject; a server that sends one nevertheless has a
problem that an operator can fix.
"""

from __future__ import annotations

from typing import Final

import pytest

from payloadd.errors import UploadOutcome
from payloadd.storage.s3.errors import error_of
from payloadd.storage.s3.response import S3Response
from tests.storage.s3.test_errors import xml

INVALID: Final = {"EntityTooLarge": 400, "KeyTooLongError": 400, "MetadataTooLarge": 400}
"""Never accepted: dead letters."""
TRANSIENT: Final = {
    "BadDigest": 400,
    "ConditionalRequestConflict": 409,
    "IncompleteBody": 400,
    "InternalError": 500,
    "OperationAborted": 409,
    "RequestTimeout": 400,
    "ServiceUnavailable": 503,
}
THROTTLED: Final = {"SlowDown": 503}
OPERATOR: Final = {
    301: ("PermanentRedirect PermanentRedirectControlError"),
    304: ("NotModified"),
    307: ("Redirect TemporaryRedirect"),
    400: (
        "AccessControlListNotSupported AmbiguousGrantByEmailAddress "
        "AuthorizationHeaderMalformed AuthorizationQueryParametersError "
        "BucketHasAccessPointsAttached ConnectionClosedByRequester CredentialsNotSupported "
        "DeviceNotActiveError EndpointNotFound EntityTooSmall ExpiredToken "
        "IllegalLocationConstraintException IllegalVersioningConfigurationException "
        "IncorrectEndpoint IncorrectNumberOfFilesInPostRequest InlineDataTooLarge "
        "InvalidAccessPoint InvalidAccessPointAliasError InvalidAddressingHeader "
        "InvalidArgument InvalidBucketAclWithObjectOwnership InvalidBucketName "
        "InvalidBucketOwnerAWSAccountID InvalidDigest InvalidEncryptionAlgorithmError "
        "InvalidHostHeader InvalidHttpMethod InvalidLocationConstraint InvalidPart "
        "InvalidPartOrder InvalidPolicyDocument InvalidRequest InvalidSOAPRequest "
        "InvalidSessionException InvalidSignature InvalidStorageClass InvalidTag "
        "InvalidTargetBucketForLogging InvalidToken InvalidURI KMS.DisabledException "
        "KMS.InvalidKeyUsageException KMS.KMSInvalidStateException KMS.NotFoundException "
        "MalformedACLError MalformedPOSTRequest MalformedPolicy MalformedXML "
        "MaxMessageLengthExceeded MaxPostPreDataLengthExceededError MissingAttachment "
        "MissingRequestBodyError MissingSecurityElement MissingSecurityHeader "
        "NoLoggingStatusForKey NotDeviceOwnerError RequestHeaderSectionTooLarge "
        "RequestTorrentOfBucketError ResponseInterrupted "
        "ServerSideEncryptionConfigurationNotFoundError TagPolicyException "
        "TokenCodeInvalidError TokenRefreshRequired TooManyAccessPoints TooManyBuckets "
        "TooManyMultiRegionAccessPointregionsError TooManyMultiRegionAccessPoints TooManyTags "
        "UnexpectedContent UnresolvableGrantByEmailAddress UnsupportedArgument "
        "UnsupportedSignature UserKeyMustBeSpecified"
    ),
    403: (
        "AccessDenied AccountProblem AllAccessDisabled CrossLocationLoggingProhibited "
        "InvalidAccessKeyId InvalidObjectState InvalidPayer InvalidRegion InvalidSecurity "
        "MissingAuthenticationToken NotSignedUp RequestTimeTooSkewed SignatureDoesNotMatch "
        "UnauthorizedAccessError UnexpectedIPError"
    ),
    404: (
        "NoSuchAccessPoint NoSuchAsyncRequest NoSuchBucket NoSuchBucketPolicy "
        "NoSuchCORSConfiguration NoSuchKey NoSuchLifecycleConfiguration "
        "NoSuchMultiRegionAccessPoint NoSuchObjectLockConfiguration NoSuchResource "
        "NoSuchTagSet NoSuchUpload NoSuchVersion NoSuchWebsiteConfiguration "
        "NoTransformationDefined ObjectLockConfigurationNotFoundError "
        "OwnershipControlsNotFoundError ReplicationConfigurationNotFoundError"
    ),
    405: ("MethodNotAllowed"),
    409: (
        "AccessPointAlreadyOwnedByYou BucketAlreadyExists BucketAlreadyOwnedByYou "
        "BucketNotEmpty ClientTokenConflict InvalidBucketState RestoreAlreadyInProgress"
    ),
    411: ("MissingContentLength"),
    412: ("PreconditionFailed RequestIsNotMultiPartContent"),
    416: ("InvalidRange"),
    501: ("NotImplemented"),
}
"""Kept and tried again: names with spaces between them, by status."""


NUMBER: Final = 135

CODES: Final = [
    *((status, code, UploadOutcome.INVALID) for code, status in INVALID.items()),
    *((status, code, UploadOutcome.TRANSIENT) for code, status in TRANSIENT.items()),
    *((status, code, UploadOutcome.THROTTLED) for code, status in THROTTLED.items()),
    *(
        (status, code, UploadOutcome.OPERATOR)
        for status, codes in OPERATOR.items()
        for code in codes.split()
    ),
]


@pytest.mark.parametrize(("status", "code", "outcome"), CODES)
def test_every_documented_code_has_its_fate(status: int, code: str, outcome: UploadOutcome) -> None:
    """An object would be dropped, or tried for ever, to the surprise of its operator."""
    error = error_of(S3Response(status, [], xml(code)))
    assert error.outcome is outcome
    assert error.code == code


def test_no_code_is_listed_twice() -> None:
    """One of two fates would be a surprise."""
    names = [code for _, code, _ in CODES]
    assert len(names) == len(set(names)) == NUMBER
