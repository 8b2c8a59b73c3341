"""The outcome and the error for each response of S3, and the values read from a response."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.errors import (
    InvalidObjectError,
    OperatorStoreError,
    StoreError,
    TransientStoreError,
    UploadOutcome,
)
from payloadd.storage.s3 import errors
from payloadd.storage.s3.errors import BY_CODE, error_of, outcome_of
from payloadd.storage.s3.response import S3Response

README = Path(errors.__file__).with_name("README.md").read_text(encoding="utf-8")
TRANSIENT, THROTTLED = UploadOutcome.TRANSIENT, UploadOutcome.THROTTLED
OPERATOR, INVALID = UploadOutcome.OPERATOR, UploadOutcome.INVALID


def xml(code: str, extra: str = "", message: str = "because") -> bytes:
    """Return an error body as S3 writes it."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code>'
        f"<Message>{message}</Message>{extra}<RequestId>1</RequestId></Error>"
    ).encode()


ROWS: list[tuple[int, str, UploadOutcome]] = [
    (500, "InternalError", TRANSIENT),
    (503, "ServiceUnavailable", TRANSIENT),
    (400, "RequestTimeout", TRANSIENT),
    (400, "RequestTimeoutException", TRANSIENT),
    (409, "OperationAborted", TRANSIENT),
    (409, "ConditionalRequestConflict", TRANSIENT),
    (400, "BadDigest", TRANSIENT),
    (400, "IncompleteBody", TRANSIENT),
    (400, "XAmzContentChecksumMismatch", TRANSIENT),
    (400, "XAmzContentSHA256Mismatch", TRANSIENT),
    (503, "Busy", THROTTLED),
    (503, "SlowDown", THROTTLED),
    (503, "SlowDownRead", THROTTLED),
    (503, "SlowDownWrite", THROTTLED),
    (400, "Throttling", THROTTLED),
    (400, "ThrottlingException", THROTTLED),
    (400, "ThrottledException", THROTTLED),
    (400, "RequestThrottled", THROTTLED),
    (400, "RequestThrottledException", THROTTLED),
    (503, "RequestLimitExceeded", THROTTLED),
    (509, "BandwidthLimitExceeded", THROTTLED),
    (400, "LimitExceededException", THROTTLED),
    (429, "TooManyRequestsException", THROTTLED),
    (400, "ProvisionedThroughputExceededException", THROTTLED),
    (400, "TransactionInProgressException", THROTTLED),
    (400, "PriorRequestNotComplete", THROTTLED),
    (503, "EC2ThrottledException", THROTTLED),
    (400, "KMS.ThrottlingException", THROTTLED),
    (400, "AuthorizationHeaderMalformed", OPERATOR),
    (301, "PermanentRedirect", OPERATOR),
    (400, "ExpiredToken", OPERATOR),
    (400, "ExpiredTokenException", OPERATOR),
    (400, "InvalidToken", OPERATOR),
    (400, "TokenRefreshRequired", OPERATOR),
    (403, "InvalidAccessKeyId", OPERATOR),
    (403, "SignatureDoesNotMatch", OPERATOR),
    (403, "RequestTimeTooSkewed", OPERATOR),
    (400, "CredentialsNotSupported", OPERATOR),
    (400, "MissingSecurityHeader", OPERATOR),
    (400, "IllegalLocationConstraintException", OPERATOR),
    (400, "IncorrectEndpoint", OPERATOR),
    (400, "InvalidRegionName", OPERATOR),
    (400, "InvalidBucketName", OPERATOR),
    (400, "InvalidStorageClass", OPERATOR),
    (400, "InvalidTag", OPERATOR),
    (400, "InvalidEncryptionAlgorithmError", OPERATOR),
    (400, "AccessControlListNotSupported", OPERATOR),
    (403, "QuotaExceeded", OPERATOR),
    (400, "XMinioAdminBucketQuotaExceeded", OPERATOR),
    (400, "EntityTooLarge", INVALID),
    (413, "EntityTooLarge", INVALID),
    (400, "KeyTooLong", INVALID),
    (400, "KeyTooLongError", INVALID),
    (400, "MetadataTooLarge", INVALID),
]
DEFAULTS: list[tuple[int, str | None, UploadOutcome]] = [
    (400, "KMS.DisabledException", OPERATOR),
    (400, "KMS.NotFoundException", OPERATOR),
    (403, "AccessDenied", OPERATOR),
    (403, "AllAccessDisabled", OPERATOR),
    (404, "NoSuchBucket", OPERATOR),
    (404, "NoSuchKey", OPERATOR),
    (405, "MethodNotAllowed", OPERATOR),
    (409, "InvalidBucketState", OPERATOR),
    (411, "MissingContentLength", OPERATOR),
    (412, "PreconditionFailed", OPERATOR),
    (501, "NotImplemented", OPERATOR),
    (507, "XMinioStorageFull", OPERATOR),
    (503, "XMinioServerNotInitialized", TRANSIENT),
    (400, "InvalidArgument", OPERATOR),
    (400, "InvalidRequest", OPERATOR),
    (400, "SomethingNew", OPERATOR),
    # Responses that are no error document of S3:
    (302, None, OPERATOR),
    (400, None, OPERATOR),
    (401, None, OPERATOR),
    (403, None, OPERATOR),
    (404, None, OPERATOR),
    (407, None, OPERATOR),
    (408, None, TRANSIENT),
    (413, None, OPERATOR),
    (414, None, OPERATOR),
    (429, None, THROTTLED),
    (500, None, TRANSIENT),
    (501, None, OPERATOR),
    (502, None, TRANSIENT),
    (503, None, TRANSIENT),
    (504, None, TRANSIENT),
    (507, None, OPERATOR),
    (599, None, TRANSIENT),
]


@pytest.mark.parametrize(("status", "code", "outcome"), [*ROWS, *DEFAULTS])
def test_a_response_has_its_outcome(status: int, code: str | None, outcome: UploadOutcome) -> None:
    """A payload that can be saved would be dropped, or one that cannot would be tried for ever."""
    assert outcome_of(status, code) is outcome


def test_every_row_of_the_table_is_tested() -> None:
    """A row could be changed unnoticed."""
    assert BY_CODE.keys() == {code for _, code, _ in ROWS}


def test_the_codes_of_the_readme_are_those_of_the_table() -> None:
    """An operator would read another outcome than the code has."""
    rows = re.findall(r"^\| `([A-Za-z0-9.]+)` \| `([A-Z]+)` \|", README, re.MULTILINE)
    assert dict(rows) == {code: outcome.name for code, outcome in BY_CODE.items()}


def test_the_statuses_of_the_readme_are_those_of_the_table() -> None:
    """An operator would read another outcome than the status has."""
    found = re.findall(r"^\| (\d{3}|[^|]*) \| (any|none) \| `([A-Z]+)` \|", README, re.MULTILINE)
    rows = {(status, code): UploadOutcome[name] for status, code, name in found}
    assert len(rows) == 6
    for status in range(300, 600):
        for code in (None, "SomethingNew"):
            wanted = [(str(status), "any" if code else "none"), (str(status), "any")]
            wanted += [("500 and above", "any")] * (status >= 500) + [("any other", "any")]
            assert outcome_of(status, code) is next(rows[key] for key in wanted if key in rows)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "AccessDenied", OperatorStoreError),
        (503, "SlowDown", TransientStoreError),
        (400, "KeyTooLongError", InvalidObjectError),
    ],
)
def test_an_outcome_has_its_class_of_error(status: int, code: str, kind: type[StoreError]) -> None:
    """A worker would drop an object, or retry it, against the table."""
    error = error_of(S3Response(status, [(b"x-amz-request-id", b"4442587FB7D0A2F9")], xml(code)))

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
def test_the_wait_that_a_response_asks_for_is_bounded(
    headers: dict[str, str], seconds: float | None
) -> None:
    """The daemon would ignore the wait that a store asks for, or wait for a year."""
    error = error_of(S3Response(503, lines(headers), xml("SlowDown")))

    assert isinstance(error, TransientStoreError)
    assert error.throttled
    assert error.retry_after == seconds


def test_a_web_page_is_no_error_document_of_s3() -> None:
    """The 400 of a proxy would turn valid payloads into dead letters."""
    error = error_of(S3Response(400, (), b"<html><h1>400 Bad Request</h1><Code>X</Code></html>"))

    assert isinstance(error, OperatorStoreError)
    assert error.code == "HTTP400"


def test_a_message_is_one_bounded_line() -> None:
    """A server could forge lines of the log, or fill the disk with them."""
    message = error_of(
        S3Response(403, (), xml("AccessDenied", "", "a\nb&lt;&#10;c\x1b[31m" + "x" * 900))
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
def test_the_region_of_a_response_is_read_if_it_is_a_name(
    headers: dict[str, str], body: bytes, region: str | None
) -> None:
    """A wrong AWS_REGION would not be corrected, or a response could choose the host."""
    assert S3Response(400, lines(headers), body).region == region


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
def test_the_time_of_a_response_is_read(
    headers: dict[str, str], body: bytes, moment: float | None
) -> None:
    """A machine with a wrong clock could store nothing."""
    assert S3Response(403, lines(headers), body).server_time == moment


def lines(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers as the parser returns them."""
    return [(name.encode(), text.encode()) for name, text in headers.items()]


@given(st.binary(max_size=500), st.integers(100, 999))
def test_every_response_can_be_read(body: bytes, status: int) -> None:
    """A broken server would stop the pipeline."""
    response = S3Response(status, [(b"date", body)], b"<Error>" + body)

    assert isinstance(error_of(response), StoreError)
    assert response.server_time is None or isinstance(response.server_time, float)
    assert response.region is None or response.region.isascii()
