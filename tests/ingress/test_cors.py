"""The headers for browsers."""

from __future__ import annotations

from payloadd.ingress.cors import Cors, origin_in

PAGE = "https://app.example.org"


def test_a_listed_origin_may_send_credentials() -> None:
    """A browser would refuse a beacon with JSON."""
    headers = Cors((PAGE, "https://other.example.org")).headers(PAGE)
    assert headers["Access-Control-Allow-Origin"] == PAGE
    assert headers["Access-Control-Allow-Credentials"] == "true"
    assert headers["Vary"] == "Origin"


def test_another_origin_gets_no_permission() -> None:
    """Any page could post in the name of a visitor. Caches must not mix up the answers."""
    cors = Cors((PAGE,))
    for origin in (None, "", "null", "https://evil.example", PAGE + "/", PAGE.upper()):
        assert cors.headers(origin) == {"Vary": "Origin"}
        assert cors.preflight(origin) == {"Vary": "Origin"}


def test_any_origin_never_sends_credentials() -> None:
    """The Fetch standard forbids the combination; browsers would refuse every answer."""
    for headers in (Cors(("*",)).headers(PAGE), Cors(("*",)).preflight(PAGE)):
        assert headers["Access-Control-Allow-Origin"] == "*"
        assert "Access-Control-Allow-Credentials" not in headers


def test_a_preflight_names_what_is_allowed() -> None:
    """A page could send no type, compression, key or token."""
    headers = Cors((PAGE,)).preflight(PAGE)
    allowed = headers["Access-Control-Allow-Headers"].split(", ")
    assert {"content-type", "content-encoding", "idempotency-key", "authorization", "prefer"} <= {
        *allowed
    }
    assert "POST" in headers["Access-Control-Allow-Methods"]
    assert int(headers["Access-Control-Max-Age"]) > 0


def test_the_origin_of_an_unparsed_request_is_in_its_head() -> None:
    """A body could name the page that may read the answer."""
    head = b"POST / HTTP/1.1\r\nORIGIN: \t https://a.example \r\n"
    assert origin_in(head) == "https://a.example"
    assert origin_in(head[:-2]) is None
    assert origin_in(b"POST / HTTP/1.1\r\n\r\nOrigin: https://a.example\r\n") is None
    assert origin_in(b"") is None
