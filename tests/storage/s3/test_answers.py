"""Every answer of a store, and what becomes of the payloads.

Each row runs the whole pipeline for minutes of virtual time against an S3 server in memory: the
payloads are kept or dead, the object is tried again at a bounded rate, the reason is named, and
once the store works the object is stored once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, cast

import pytest
import structlog.testing
import trio

from tests.pipeline.rig import Pipeline
from tests.support.store import FakeS3, Refusal
from tests.support.store_behaviours import (
    INTERNAL_ERROR,
    PORTAL,
    SLOW_DOWN,
    TAKE,
    Answer,
    Cut,
    Expired,
    Hang,
    InTurn,
    Rejects,
    Skewed,
    Take,
    Wants,
    redirect,
)
from tests.support.store_in_memory import store_in_memory

if TYPE_CHECKING:
    from trio.testing import MockClock

    from tests.pipeline.rig import FaultyStore
    from tests.support.store import Behaviour

_MINUTES: Final = 3
_MOST_A_MINUTE: Final = 70
"""Attempts at one object, repetitions within a round included."""


class Row(NamedTuple):
    """An answer, and the fate of an object that gets it."""

    name: str
    behaviour: Behaviour
    said: str = ""
    """The code of the trouble or of the dead letter, "" for neither."""
    fate: str = "kept"
    """``kept``: tried again until the store works; ``dead``; ``stored`` in spite of the answer."""
    reason: str = ""
    """A part of the reason."""


def refusal(status: int, code: str, message: str = "no", fate: str = "kept") -> Row:
    """Return the row of an error document."""
    return Row(f"{status} {code}", Refusal(status, code, message), code, fate)


def plain(status: int, said: str = "", body: bytes = b"<html>no</html>") -> Row:
    """Return the row of an answer that is no error document."""
    return Row(f"{status} HTML", Answer(status, body), said or f"HTTP{status}")


_ETAG: Final = {"etag": '"0"'}
_MD5_REQUIRED: Final = Refusal(400, "InvalidRequest", "Content-MD5 HTTP header is required")
_MISSING_MD5: Final = Refusal(400, "MissingContentMD5", "Missing required header: Content-MD5")
_UNSUPPORTED: Final = Refusal(
    400, "InvalidArgument", "Unsupported header 'x-amz-checksum-crc32' received for this API call."
)
_KEPT_AND_LOST: Final = Cut(keeps=True)

ROWS: Final = [
    # Confirmations.
    Row("200 ETag", TAKE, fate="stored"),
    Row("200 ETag, no echo", Take(echo=False), fate="stored"),
    Row("200 ETag that is no MD5", Take(echo=False, etag='"0"'), fate="stored"),
    # Answers that are none.
    Row("200 without ETag", Answer(200), "NOT_S3"),
    Row("200 with an empty ETag", Answer(200, headers={"etag": '""'}), "NOT_S3"),
    Row("captive portal", PORTAL, "NOT_S3", reason="text/html"),
    Row("captive portal with ETag", Answer(200, PORTAL.body, _ETAG), "NOT_S3"),
    Row("200 XHTML", Answer(200, b"<?xml version='1.0'?><html>", _ETAG), "NOT_S3"),
    Row("200 JSON with ETag", Answer(200, b'{"ok":1}', _ETAG), "NOT_S3"),
    Row("200 <Error>", Answer(200, b"<Error><Code>InternalError</Code></Error>", _ETAG),
        "WRONG_ANSWER", reason="InternalError"),
    Row("SeaweedFS filer", Answer(201, b'{"name":"x","size":2}'), "NOT_S3"),
    Row("201 ETag", Answer(201, headers=_ETAG), "NOT_S3"),
    Row("202", Answer(202), "NOT_S3"),
    Row("204", Answer(204), "NOT_S3"),
    Row("206 ETag", Answer(206, headers=_ETAG), "NOT_S3"),
    Row("wrong checksum", Answer(200, headers={**_ETAG, "x-amz-checksum-crc32": "AAAAAA=="}),
        "WRONG_ANSWER", reason="x-amz-checksum-crc32"),
    Row("wrong SHA-256", Answer(200, headers={**_ETAG, "x-amz-checksum-sha256": "AAAA"}),
        "WRONG_ANSWER", reason="x-amz-checksum-sha256"),
    # Redirects.
    Row("301", redirect(301, "http://s3.example/"), "PermanentRedirect"),
    Row("302", Answer(302, headers={"location": "http://portal.example/x"}), "HTTP302",
        reason="redirected to http://portal.example/x, which is not followed"),
    Row("307 to another host", redirect(307, "http://evil.example/"), "TemporaryRedirect"),
    Row("307 without Location", Answer(307), "HTTP307"),
    # Final for this one object.
    refusal(400, "EntityTooLarge", fate="dead"),
    refusal(413, "EntityTooLarge", fate="dead"),
    refusal(400, "KeyTooLongError", fate="dead"),
    refusal(400, "MetadataTooLarge", fate="dead"),
    # An operator can fix all of these.
    refusal(400, "InvalidArgument", "Credential access key has length 2, should be 32"),
    refusal(400, "InvalidArgument", "S3 API Requests must be made to API port."),
    refusal(400, "InvalidArgument", "Failed to retrieve the actual key"),
    refusal(400, "InvalidRequest", "something else"),
    refusal(400, "SomethingNew"),
    refusal(400, "InvalidStorageClass"),
    refusal(400, "KMS.DisabledException"),
    refusal(400, "ExpiredToken"),
    Row("expired key", Expired(frozenset({"fake"})), "ExpiredToken"),
    refusal(403, "AccessDenied"),
    refusal(403, "InvalidAccessKeyId"),
    refusal(403, "SignatureDoesNotMatch"),
    refusal(404, "NoSuchBucket"),
    refusal(405, "MethodNotAllowed"),
    refusal(409, "InvalidBucketState"),
    refusal(411, "MissingContentLength"),
    refusal(412, "PreconditionFailed"),
    refusal(501, "NotImplemented"),
    *(plain(status) for status in (400, 401, 403, 404, 405, 407, 409, 411, 413, 414)),
    *(plain(status) for status in (451, 501, 507)),
    Row("checksum refused", Rejects("x-amz-checksum", _UNSUPPORTED), "InvalidArgument",
        reason="S3_CHECKSUM=none"),
    # The store or the network fails for a moment.
    refusal(400, "BadDigest"),
    refusal(400, "IncompleteBody"),
    refusal(400, "RequestTimeout"),
    refusal(409, "OperationAborted"),
    Row("500", INTERNAL_ERROR, "InternalError"),
    *(plain(status) for status in (408, 500, 502, 503, 504, 599)),
    Row("reset", Cut(), "ReadError"),
    Row("hang", Hang(), "UploadTimeout"),
    # The store asks for less.
    Row("503 SlowDown", SLOW_DOWN, "SlowDown"),
    plain(429),
    refusal(400, "ThrottlingException"),
    Row("Retry-After", Refusal(429, "TooManyRequests", headers={"retry-after": "2"}),
        "TooManyRequests"),
    # Wishes that are met.
    Row("Content-MD5 required", Wants("content-md5", _MD5_REQUIRED), fate="stored"),
    Row("MissingContentMD5", Wants("content-md5", _MISSING_MD5), fate="stored"),
    Row("clock", Skewed(7200), fate="stored"),
    Row("clock by its Date", Skewed(-7200, says="date"), fate="stored"),
    Row("307 within the domain", InTurn((redirect(307, "http://127.0.0.1:2/x"), TAKE)),
        fate="stored"),
    # An attempt that was kept while its answer was lost.
    Row("kept, lost", InTurn((_KEPT_AND_LOST, TAKE)), fate="stored"),
    Row("kept, lost, 5xx", InTurn((Refusal(500, "InternalError", keeps=True), TAKE)),
        fate="stored"),
]  # fmt: skip


@pytest.mark.no_cover
@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
async def test_an_answer_has_its_fate(row: Row, autojump_clock: MockClock) -> None:
    """Payloads would be lost, stored twice or tried without a pause, or the reason would lack."""
    assert autojump_clock.autojump_threshold == 0
    fake = FakeS3(row.behaviour, port=1)
    store = await store_in_memory(fake, UPLOAD_TIMEOUT="5s")
    pipeline = Pipeline(cast("FaultyStore", store), UPLOAD_TIMEOUT="5s")
    with structlog.testing.capture_logs() as lines:
        async with pipeline.open():
            await pipeline.intake.accept([b"1"])
            await trio.sleep(60 * _MINUTES)
            _check_fate(row, fake, pipeline, lines)
            fake.behaviour = "take"
            await trio.sleep(60)
        assert pipeline.health.trouble("store") is None
    stored = row.fate != "dead"
    assert fake.payloads() == [b"1"] * stored
    assert sum(fake.puts.values()) <= 2
    assert pipeline.value("payloads_stored_total") == stored
    assert pipeline.value("payloads_dead_total") == (not stored)


def _check_fate(
    row: Row, fake: FakeS3, pipeline: Pipeline, lines: list[structlog.typing.EventDict]
) -> None:
    """Check the fate while the store still gives its answer."""
    events = [line["event"] for line in lines]
    trouble = pipeline.health.trouble("store")
    asked = [seen for seen in fake.seen if seen.method == "PUT"]
    if row.fate == "kept":
        assert trouble is not None
        assert (trouble.code, row.reason in trouble.reason) == (row.said, True), trouble
        assert events.count("store_unavailable") == 1, lines
        assert 2 * _MINUTES <= len(asked) <= _MOST_A_MINUTE * _MINUTES
        assert pipeline.value("payloads_dead_total") == 0
        assert pipeline.value("payloads_stored_total") == 0
    else:
        assert trouble is None
        assert len(asked) <= 3
    if row.fate == "dead":
        assert [line["code"] for line in lines if line["event"] == "payloads_dead"] == [row.said]
