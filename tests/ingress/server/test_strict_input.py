"""h11's input is as strict as the fast path; the fuzzers of the fast path compare the two."""

from __future__ import annotations

import h11
import pytest

from payloadd.ingress.http_grammar import MAX_HEAD_BYTES
from payloadd.ingress.server.strict_input import StrictConnection

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def events(data: bytes) -> list[str]:
    """Return the names of the events until more input is needed."""
    connection = StrictConnection()
    connection.receive_data(data)
    found: list[str] = []
    while not found or found[-1] not in {"NEED_DATA", "PAUSED", "ConnectionClosed"}:
        event = connection.next_event()
        found.append(event.__name__ if isinstance(event, type) else type(event).__name__)
    return found


@pytest.mark.parametrize(
    "data",
    [
        HEAD.replace(b"\r\n", b"\n"), HEAD + b" folded\r\n\r\n", HEAD + b"X: \x01\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\n", HEAD + b"Host: y/z\r\n\r\n",
        HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"\r\n" + HEAD + b"\r\n",
        CHUNKED.replace(b"1.1", b"1.0"), HEAD.replace(b"1.1", b"2.0") + b"\r\n",
        CHUNKED + b"1 \r\nx\r\n", CHUNKED + b"0\r\nX: y\n", CHUNKED + b"0\r\n X: y\r\n\r\n",
        CHUNKED + b"0\r\nContent-Length: 1\r\n\r\n",
        HEAD + b"X: " + b"y" * MAX_HEAD_BYTES,
    ],
)  # fmt: skip
def test_what_two_parsers_may_read_differently_is_refused(data: bytes) -> None:
    """h11 alone would accept it, and a proxy could be passed."""
    with pytest.raises(h11.RemoteProtocolError):
        events(data)


def test_a_head_that_is_too_large_has_its_own_status() -> None:
    """The answer could not say what is wrong."""
    for data in (HEAD + b"X: " + b"y" * MAX_HEAD_BYTES, b"G" * (MAX_HEAD_BYTES + 1)):
        with pytest.raises(h11.RemoteProtocolError) as raised:
            events(data)
        assert raised.value.error_status_hint == 431


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (HEAD, ["NEED_DATA"]),
        (HEAD + b"\r\n", ["Request", "EndOfMessage", "NEED_DATA"]),
        (
            CHUNKED + b"1;a\r\nx\r\n0\r\nX: y\r\n\r\n",
            ["Request", "Data", "EndOfMessage", "NEED_DATA"],
        ),
        (CHUNKED + b"0\r\n\r\n" + HEAD, ["Request", "EndOfMessage", "PAUSED"]),
        (b"PRI * HTTP/2.0\r\n\r\n", ["Request", "EndOfMessage", "NEED_DATA"]),
    ],
)
def test_valid_input_is_read(data: bytes, expected: list[str]) -> None:
    """Requests would be refused."""
    assert events(data) == expected


def test_what_follows_a_last_request_is_dropped() -> None:
    """The request would get a 400 although it is accepted, and its client would repeat it."""
    data = HEAD + b"Connection: close\r\n\r\n" + HEAD
    assert events(data)[:2] == ["Request", "EndOfMessage"]
