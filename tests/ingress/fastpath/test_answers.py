"""The bytes of answers."""

from __future__ import annotations

import pytest

from payloadd.ingress.cors import Cors
from payloadd.ingress.fastpath.answers import CLOSE, KEEP, Answers, FixedAnswer, without_body
from payloadd.ingress.problem import Problem

ORIGIN = "https://a.b"


@pytest.mark.parametrize("connection", [b"", CLOSE, KEEP])
def test_all_answers_say_whether_the_connection_is_kept(connection: bytes) -> None:
    """A client would wait for the end, or send a request to a closed connection."""
    answers = Answers(None)
    page = FixedAnswer(200, {"X": "y"}, b"body")
    made = [
        answers.accepted(202, b"{}", None, None, connection),
        answers.page(page, None, connection),
        answers.problem(Problem("MALFORMED", "x"), None, connection),
    ]
    for answer in made:
        head, _, body = answer.partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        expected = [connection.lower().removesuffix(b"\r\n")] if connection else []
        assert [line for line in lines if line.startswith(b"connection:")] == expected
        assert b"content-length: %d" % len(body) in lines
        assert b"\r\ndate: " in head.lower()


def test_an_accepted_request() -> None:
    """A client would not learn that its payloads are stored."""
    answers = Answers(None)
    assert answers.accepted(202, b"{}", None, None, b"").startswith(b"HTTP/1.1 202 Accepted\r\n")
    stored = answers.accepted(201, b"{}", 7, None, b"")
    assert stored.startswith(b"HTTP/1.1 201 Created\r\n")
    assert b"\r\npreference-applied: wait=7\r\n" in stored


def test_the_date_follows_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that corrects its clock by the header would be wrong."""
    answers = Answers(None)
    for second, text in ((0, b"00:00:00"), (0, b"00:00:00"), (61, b"00:01:01")):
        monkeypatch.setattr("payloadd.ingress.fastpath.answers.time.time", lambda now=second: now)
        assert b"date: Thu, 01 Jan 1970 %b GMT" % text in answers.accepted(
            202, b"", None, None, b""
        )
        assert b"Date: Thu, 01 Jan 1970 %b GMT" % text in answers.page(
            FixedAnswer(204, {}, b""), None, b""
        )


def test_pages_of_other_origins_may_read_all_answers() -> None:
    """A browser would hide the answer, or refuse the request."""
    answers = Answers(Cors([ORIGIN]))
    allowed = b"\r\nAccess-Control-Allow-Origin: https://a.b\r\n"
    for answer in (
        answers.accepted(202, b"{}", None, ORIGIN, b""),
        answers.page(FixedAnswer(200, {}, b""), ORIGIN, b""),
        answers.problem(Problem("MALFORMED", "x"), ORIGIN, CLOSE),
    ):
        assert allowed in answer
        assert b"Access-Control-Allow-Methods" not in answer
    preflight = answers.page(FixedAnswer(204, {}, b"", preflight=True), ORIGIN, b"")
    assert allowed in preflight
    assert b"Access-Control-Allow-Methods" in preflight
    assert b"ontent-" + b"ength" not in preflight


def test_an_answer_to_head_ends_with_its_head() -> None:
    """A client would read the body as the next answer."""
    answer = Answers(None).page(FixedAnswer(200, {}, b"a\r\n\r\nb"), None, b"")
    assert answer == without_body(answer) + b"a\r\n\r\nb"
