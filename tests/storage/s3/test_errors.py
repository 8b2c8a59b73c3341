"""What becomes of an object for each thing S3 can say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.errors import InvalidObjectError, OperatorStoreError, StoreError, TransientStoreError
from payloadd.storage.s3.errors import BY_CODE, Fate, error_of, fate_of
from payloadd.storage.s3.response import Answer

SOON, LESS, MEND, NEVER = Fate.SOON, Fate.LESS, Fate.MEND, Fate.NEVER


def xml(code: str, extra: str = "", message: str = "because") -> bytes:
    """Return an error body as S3 writes it."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code>'
        f"<Message>{message}</Message>{extra}<RequestId>1</RequestId></Error>"
    ).encode()


ROWS: list[tuple[int, str, Fate]] = [
    (500, "InternalError", SOON),
    (503, "ServiceUnavailable", SOON),
    (400, "RequestTimeout", SOON),
    (400, "RequestTimeoutException", SOON),
    (409, "OperationAborted", SOON),
    (409, "ConditionalRequestConflict", SOON),
    (400, "BadDigest", SOON),
    (400, "IncompleteBody", SOON),
    (400, "XAmzContentChecksumMismatch", SOON),
    (400, "XAmzContentSHA256Mismatch", SOON),
    (503, "SlowDown", LESS),
    (503, "SlowDownRead", LESS),
    (503, "SlowDownWrite", LESS),
    (400, "Throttling", LESS),
    (400, "ThrottlingException", LESS),
    (400, "ThrottledException", LESS),
    (400, "RequestThrottled", LESS),
    (400, "RequestThrottledException", LESS),
    (503, "RequestLimitExceeded", LESS),
    (509, "BandwidthLimitExceeded", LESS),
    (400, "LimitExceededException", LESS),
    (429, "TooManyRequestsException", LESS),
    (400, "ProvisionedThroughputExceededException", LESS),
    (400, "TransactionInProgressException", LESS),
    (400, "PriorRequestNotComplete", LESS),
    (503, "EC2ThrottledException", LESS),
    (400, "KMS.ThrottlingException", LESS),
    (400, "AuthorizationHeaderMalformed", MEND),
    (301, "PermanentRedirect", MEND),
    (400, "ExpiredToken", MEND),
    (400, "ExpiredTokenException", MEND),
    (400, "InvalidToken", MEND),
    (400, "TokenRefreshRequired", MEND),
    (403, "InvalidAccessKeyId", MEND),
    (403, "SignatureDoesNotMatch", MEND),
    (403, "RequestTimeTooSkewed", MEND),
    (400, "CredentialsNotSupported", MEND),
    (400, "MissingSecurityHeader", MEND),
    (400, "IllegalLocationConstraintException", MEND),
    (400, "IncorrectEndpoint", MEND),
    (400, "InvalidRegionName", MEND),
    (400, "InvalidBucketName", MEND),
    (400, "InvalidStorageClass", MEND),
    (400, "InvalidTag", MEND),
    (400, "InvalidEncryptionAlgorithmError", MEND),
    (400, "AccessControlListNotSupported", MEND),
    (403, "QuotaExceeded", MEND),
    (400, "XMinioAdminBucketQuotaExceeded", MEND),
    (400, "EntityTooLarge", NEVER),
    (413, "EntityTooLarge", NEVER),
    (400, "InvalidRequest", NEVER),
    (400, "KeyTooLongError", NEVER),
    (400, "MetadataTooLarge", NEVER),
]
DEFAULTS: list[tuple[int, str | None, Fate]] = [
    (400, "KMS.DisabledException", MEND),
    (400, "KMS.NotFoundException", MEND),
    (403, "AccessDenied", MEND),
    (403, "AllAccessDisabled", MEND),
    (404, "NoSuchBucket", MEND),
    (404, "NoSuchKey", MEND),
    (405, "MethodNotAllowed", MEND),
    (409, "InvalidBucketState", MEND),
    (411, "MissingContentLength", MEND),
    (412, "PreconditionFailed", MEND),
    (501, "NotImplemented", MEND),
    (507, "XMinioStorageFull", MEND),
    (503, "XMinioServerNotInitialized", SOON),
    (400, "InvalidArgument", NEVER),
    (400, "SomethingNew", NEVER),
    # Not S3's word:
    (302, None, MEND),
    (400, None, MEND),
    (401, None, MEND),
    (403, None, MEND),
    (404, None, MEND),
    (407, None, MEND),
    (408, None, SOON),
    (413, None, MEND),
    (414, None, MEND),
    (429, None, LESS),
    (500, None, SOON),
    (501, None, MEND),
    (502, None, SOON),
    (503, None, SOON),
    (504, None, SOON),
    (507, None, MEND),
    (599, None, SOON),
]


@pytest.mark.parametrize(("status", "code", "fate"), [*ROWS, *DEFAULTS])
def test_a_row_of_the_table(status: int, code: str | None, fate: Fate) -> None:
    """A payload would be given up that could be saved, or tried for ever in vain."""
    assert fate_of(status, code) is fate


def test_every_row_has_a_test() -> None:
    """A row could be changed and nobody would notice."""
    assert BY_CODE.keys() == {code for _, code, _ in ROWS}


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "AccessDenied", OperatorStoreError),
        (503, "SlowDown", TransientStoreError),
        (400, "KeyTooLongError", InvalidObjectError),
    ],
)
def test_the_error_has_the_class_that_says_what_to_do(
    status: int, code: str, kind: type[StoreError]
) -> None:
    """A worker would do the wrong thing with an object."""
    error = error_of(Answer(status, [(b"x-amz-request-id", b"4442587FB7D0A2F9")], xml(code)))

    assert type(error) is kind
    assert error.code == code
    assert str(error) == f"{code}: HTTP {status}, because, request id 4442587FB7D0A2F9"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"x-amz-retry-after": "1500"}, 1.5),
        ({"x-amz-retry-after": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"retry-after": "99999999"}, 300.0),
        ({"retry-after": "-1"}, None),
    ],
)
def test_how_long_the_store_asks_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    """The daemon would press a store that asked for a pause, or pause for a year."""
    error = error_of(Answer(503, lines(headers), xml("SlowDown")))

    assert isinstance(error, TransientStoreError)
    assert error.throttled
    assert error.retry_after == seconds


def test_a_web_page_is_no_word_of_s3() -> None:
    """A proxy's 400 would make dead letters of good payloads."""
    error = error_of(Answer(400, (), b"<html><h1>400 Bad Request</h1><Code>X</Code></html>"))

    assert isinstance(error, OperatorStoreError)
    assert error.code == "HTTP400"


def test_a_message_is_one_bounded_line() -> None:
    """A server could write lines of its own into the log, or fill it."""
    message = error_of(
        Answer(403, (), xml("AccessDenied", "", "a\nb&lt;&#10;c\x1b[31m" + "x" * 900))
    )

    assert "ab<c[31mxxx" in str(message)
    assert str(message).isprintable()
    assert len(str(message)) < 400


@pytest.mark.parametrize(
    ("headers", "body", "region"),
    [
        ({"x-amz-bucket-region": "eu-west-3"}, b"", "eu-west-3"),
        ({}, xml("AuthorizationHeaderMalformed", "<Region>eu-west-3</Region>"), "eu-west-3"),
        ({"x-amz-bucket-region": "evil.example/x"}, b"", None),
        ({}, b"", None),
    ],
)
def test_the_region_that_an_answer_names(
    headers: dict[str, str], body: bytes, region: str | None
) -> None:
    """A wrong AWS_REGION would not be put right, or an answer could choose the host."""
    assert Answer(400, lines(headers), body).region == region


@pytest.mark.parametrize(
    ("headers", "body", "moment"),
    [
        ({"date": "Thu, 01 Jan 1970 00:01:00 GMT"}, b"", 60.0),
        ({}, xml("X", "<ServerTime>1970-01-01T00:02:00Z</ServerTime>"), 120.0),
        ({}, xml("X", "<ServerTime>1970-99-01T00:02:00Z</ServerTime>"), None),
        ({"date": "yesterday"}, b"", None),
        ({}, b"", None),
    ],
)
def test_the_time_that_an_answer_names(
    headers: dict[str, str], body: bytes, moment: float | None
) -> None:
    """A machine with a wrong clock could not store anything."""
    assert Answer(403, lines(headers), body).time == moment


def lines(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers as they come."""
    return [(name.encode(), text.encode()) for name, text in headers.items()]


@given(st.binary(max_size=500), st.integers(100, 999))
def test_no_answer_breaks_the_reading(body: bytes, status: int) -> None:
    """Garbage from a broken server would stop the pipeline."""
    answer = Answer(status, [(b"date", body)], b"<Error>" + body)

    assert isinstance(error_of(answer), StoreError)
    assert answer.time is None or isinstance(answer.time, float)
    assert answer.region is None or answer.region.isascii()
