"""The parts of the grammar that neither llhttp nor h11 checks."""

from __future__ import annotations

import pytest

from payloadd.ingress.http_grammar import (
    is_chunk_line,
    is_host,
    is_length,
    parse_request_line,
    path_of_target,
)


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        (b"", True), (b"x", True), (b"a.b-c_d~1", True), (b"x:80", True), (b"x:", True),
        (b"[::1]", True), (b"[::1]:80", True), (b"[v1.a:b]", True), (b"a%20b", True),
        (b"1.2.3.4:65536", True), (b"a b", False), (b"a,b", True), (b"x/y", False),
        (b"u@x", False), (b"x:8a", False), (b"[::1", False), (b"\xff", False), (b"a%2", False),
        (b"x:80:80", False), (b"http://x", False), (b"x\t", False), (b"[]", False),
    ],
)  # fmt: skip
def test_hosts_follow_rfc_3986(value: bytes, valid: bool) -> None:  # noqa: FBT001
    """A Host that a proxy reads as another one would be accepted, or a valid one refused."""
    assert is_host(value) is valid


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (b"GET / HTTP/1.1", (b"GET", b"/", 1)), (b"x!#$%&'*+.^_`|~-9 * HTTP/1.0", (None, b"*", 0)),
        (b"GET http://x?y HTTP/1.9", (b"GET", b"http://x?y", 9)),
        (b"CONNECT 1.2.3.4:80 HTTP/1.1", (b"CONNECT", b"1.2.3.4:80", 1)),
    ],
)  # fmt: skip
def test_valid_request_lines(line: bytes, parts: tuple[bytes | None, bytes, int]) -> None:
    """A request would be refused."""
    found = parse_request_line(line)
    assert found is not None
    assert (found.target, found.minor) == parts[1:]
    assert parts[0] in (None, found.method)


@pytest.mark.parametrize(
    "line",
    [
        b"", b"GET /", b"GET  / HTTP/1.1", b"GET / HTTP/1.1 ", b" GET / HTTP/1.1",
        b"GET / HTTP/2.0",
        b"GET / HTTP/1.10", b"GET / http/1.1", b"G(T / HTTP/1.1", b"GET /\xff HTTP/1.1",
        b"GET x HTTP/1.1", b"GET 1.2.3.4:80 HTTP/1.1", b"GET ** HTTP/1.1", b"GET\t/ HTTP/1.1",
        b"GET /\t HTTP/1.1", b"GET / HTTP/1.1\r", b"GET / HTTP/0.9",
    ],
)  # fmt: skip
def test_invalid_request_lines(line: bytes) -> None:
    """A line that another program reads differently would be accepted."""
    assert parse_request_line(line) is None


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/a?b?c", b"/a"), (b"http://u@x:1/a?b", b"/a"), (b"http://x", b""),
        (b"http://x?a/b", b""),
        (b"/http://x/a", b"/http://x/a"), (b"//x/a", b"//x/a"), (b"*", b"*"),
        (b"h2+c.d://x//a", b"//a"),
    ],
)  # fmt: skip
def test_the_path_of_a_target(target: bytes, path: bytes) -> None:
    """A request would get to another path than a proxy has checked."""
    assert path_of_target(target) == path


def test_lengths_fit_into_64_bits() -> None:
    """Two programs could read different numbers."""
    assert all(map(is_length, (b"0", b"007", b"9" * 19)))
    assert not any(map(is_length, (b"", b"9" * 20, b"-1", b"+1", b"1 ", b"0x1", b"\xb2", b"1,1")))


@pytest.mark.parametrize(
    ("line", "valid"),
    [
        (b"0", True), (b"aF", True), (b"0" * 30 + b"f" * 16, True), (b"1" + b"0" * 16, False),
        (b"5;a", True), (b"5;a=b;c", True), (b'5;a="\\"\xff \t";b=', True), (b"5;", False),
        (b"5 ", False), (b"5; a", False), (b"5;a =b", False), (b'5;a="', False), (b"", False),
        (b"5;\x01", False), (b"0x5", False), (b"-5", False),
    ],
)  # fmt: skip
def test_chunk_sizes_and_extensions(line: bytes, valid: bool) -> None:  # noqa: FBT001
    """A chunk would end somewhere else for a proxy."""
    assert is_chunk_line(line) is valid
