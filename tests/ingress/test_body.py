"""Request bodies: content types, bounds, documents of one payload."""

from __future__ import annotations

import gzip
import json
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from payloadd.ingress import body as bodies
from payloadd.ingress.decompression import TooMuchWorkError
from payloadd.ingress.problem import Problem
from tests.ingress.decoding import (
    LIMITS,
    MIB,
    MOST,
    TEXT,
    decode,
    from_json,
    from_lines,
    problem_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_byte_order_mark_is_skipped() -> None:
    """Tools of Windows write it; it would be refused as an invalid character."""
    mark = b"\xef\xbb\xbf"
    assert from_json(mark + b'{"payloads":["\xc3\xa9"]}') == [b'"\xc3\xa9"']
    assert from_json(mark + b"[1]") == [b"1"]
    assert from_lines(mark + b"1\n2\n") == [b"1", b"2"]


@pytest.mark.parametrize(
    "body", [b'{"a": [1,\n 2]}', b'\xef\xbb\xbf{"a":[1, 2]}', b'"text"', b" [1,2]\r\n", b"null"]
)
def test_a_document_is_one_payload(body: bytes) -> None:
    """Webhooks and CloudEvents are documents of any shape, printed in any style."""
    limits = bodies.Limits(MIB, MOST)
    (payload,) = bodies.decode(body, "application/cloudevents+json", None, limits, document=True)
    assert json.loads(bytes(payload)) == json.loads(body.decode("utf-8-sig"))
    assert b"\n" not in bytes(payload)


@pytest.mark.parametrize("body", [b"", b"1 2", b'{"a":1', b"\xff", b"[" * 400_000])
def test_a_document_must_be_json(body: bytes) -> None:
    """A broken document would be stored for good, and break its object for readers."""
    with pytest.raises(Problem) as caught:
        bodies.decode(body, "application/json", None, bodies.Limits(MIB, MOST), document=True)
    assert caught.value.code == "MALFORMED"


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json", "Application/JSON", "application/json; charset=utf-8",
        'application/json;charset="UTF-8"', "application/json; charset=utf8; x=y",
    ],
)  # fmt: skip
def test_spellings_of_the_content_type_are_accepted(content_type: str) -> None:
    """Otherwise a client with another valid spelling of the type would get a 415."""
    assert decode(b'{"payloads":[1]}', content_type, None, MIB) == [b"1"]


@pytest.mark.parametrize("text", [b'"\\ud800"', b'{"\\ud800":1}', b'["\\udc00\\ud800"]'])
def test_half_a_surrogate_pair_is_malformed(text: bytes) -> None:
    """Otherwise readers could not decode the stored payload, or the answer would be a 500."""
    for body in (b'{"payloads":[' + text + b"]}", b'{"payloads":[],"x":' + text + b"}"):
        assert problem_of(body).code == "MALFORMED"
    assert problem_of(text, "application/x-ndjson").code == "MALFORMED"


@pytest.mark.parametrize(
    "content_type",
    [
        None, "", "text/plain", "application/json; charset=latin-1", "application/xml",
        "application/x-www-form-urlencoded", "application/json, application/json", "json",
        "application/jsonx", ";charset=utf-8",
    ],
)  # fmt: skip
def test_other_content_types_are_refused(content_type: str | None) -> None:
    """Otherwise a client that sends a form by mistake would not learn the right type."""
    problem = problem_of(b'{"payloads":[]}', content_type)
    assert (problem.status, problem.code) == (415, "UNSUPPORTED_TYPE")
    assert problem.headers["Accept-Post"].startswith("application/json, ")
    assert "application/x-ndjson" in problem.detail


@given(st.binary(max_size=200), st.sampled_from(["application/json", "application/jsonl"]))
def test_random_bytes_never_crash(data: bytes, content_type: str) -> None:
    """Otherwise some unforeseen bytes would cause a 500."""
    for coding in (None, "gzip", "zstd"):
        try:
            decode(data, content_type, coding, 1000)
        except Problem as problem:
            assert problem.status in {400, 413, 422}  # noqa: PT017 - it may also be fine


@pytest.mark.parametrize(
    ("coding", "pack"), [(None, bytes), ("gzip", gzip.compress), ("zstd", zstandard.compress)]
)
def test_max_length_is_exact(coding: str | None, pack: Callable[[bytes], bytes]) -> None:
    """Otherwise a body of exactly MAX_LENGTH would be refused, or one more byte be accepted."""
    limit = len(TEXT)
    assert len(decode(pack(TEXT), "application/json", coding, limit)) == 500
    problem = problem_of(pack(TEXT + b" "), coding=coding, limit=limit)
    assert (problem.status, problem.code) == (413, "TOO_LARGE")
    assert str(limit) in problem.detail


@pytest.mark.parametrize(
    ("body", "content_type", "coding"),
    [
        (b'{"payloads":["%s"]}' % (b"x" * 600_000), "application/json", None),
        (b'{"payloads":[%s1]}' % (b"1," * 50_000), "application/json", None),
        (b"1\n" * 5000, "application/x-ndjson", None),
        (b"\n" * 5000, "application/x-ndjson", None),
        (gzip.compress(b" " * 100_000), "application/x-ndjson", "gzip"),
        (zstandard.compress(b"1\n" * 5000), "application/x-ndjson", "zstd"),
        (gzip.compress(b"") * 600, "application/x-ndjson", "gzip"),
    ],
    ids=["bytes", "commas", "lines", "blank lines", "unpacked bytes", "unpacked lines", "members"],
)
def test_a_body_that_takes_long_is_not_decoded_in_the_event_loop(
    body: bytes, content_type: str, coding: str | None
) -> None:
    """Otherwise one request would delay all other clients."""
    with pytest.raises(TooMuchWorkError):
        bodies.decode(body, content_type, coding, LIMITS, in_loop=True)
    bodies.decode(body, content_type, coding, LIMITS)


@pytest.mark.parametrize(
    "start",
    [b'{"\\u0061":1,"payloads":[', b'{"a":{"payloads":1},"payloads":[', b'{"version":1,"a":['],
)
def test_a_larger_document_is_parsed_once_in_the_event_loop(start: bytes) -> None:
    """Otherwise a few clients could delay all others: each parse takes milliseconds."""
    for size, too_much in ((1000, False), (200_000, True)):
        document = start + b'"%s"]}' % (b"x" * size)
        with pytest.raises(TooMuchWorkError) if too_much else suppress(Problem):
            bodies.decode(document, "application/json", None, LIMITS, in_loop=True)
