"""The header of the PROXY protocol, without a server."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from payloadd.ingress.server.proxy_protocol import (
    LONGEST,
    ProxyHeader,
    ProxyHeaderError,
    ProxyHeaderReader,
    parse,
)
from tests.ingress.rig import SOON
from tests.support.proxy_headers import IPV4, IPV6, LOCAL, UNIX, UNSPEC, binary, line

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST_LINE = b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n"

VALID = {
    "line, IPv4": (line("192.0.2.1"), "192.0.2.1"),
    "line, IPv6": (line("2001:DB8::1"), "2001:db8::1"),
    "line, unknown": (b"PROXY UNKNOWN\r\n", None),
    "line, unknown with addresses": (b"PROXY UNKNOWN ::1 ::1 1 2\r\n", None),
    "line, longest": (LONGEST_LINE, None),
    "IPv4": (binary(IPV4, "192.0.2.1"), "192.0.2.1"),
    "IPv4, UDP": (binary(0x12, "192.0.2.1"), "192.0.2.1"),
    "IPv6": (binary(IPV6, "2001:db8::1"), "2001:db8::1"),
    "Unix": (binary(UNIX), "unix"),
    "unspecified": (binary(UNSPEC), None),
    "unspecified protocol": (binary(0x10, "192.0.2.1"), None),
    "local": (binary(UNSPEC, command=LOCAL), None),
    "local, with an address": (binary(IPV4, "192.0.2.1", command=LOCAL), None),
    "local, with an unknown family": (binary(0xFF, command=LOCAL), None),
    "with fields": (binary(IPV4, "192.0.2.1", fields=b"\x04\0\x05hello"), "192.0.2.1"),
    "longest": (binary(IPV4, "192.0.2.1", fields=bytes(LONGEST - 28)), "192.0.2.1"),
}
INVALID = {
    "HTTP": (b"POST /v1/payloads HTTP/1.1\r\n", "does not begin"),
    "TLS": (b"\x16\x03\x01", "does not begin"),
    "lower case": (b"proxy TCP4", "does not begin"),
    "two spaces": (b"PROXY  TCP4 1.1.1.1 1.1.1.1 1 2\r\n", "malformed"),
    "no addresses": (b"PROXY TCP4\r\n", "malformed"),
    "no line feed": (b"PROXY TCP4 1.1.1.1 1.1.1.1 1 2\rX\r\n", "malformed"),
    "a port with a zero in front": (b"PROXY TCP4 1.1.1.1 1.1.1.1 01 2\r\n", "malformed"),
    "an address with a zone": (b"PROXY TCP6 fe80::1%1 ::1 1 2\r\n", "malformed"),
    "IPv6 as IPv4": (b"PROXY TCP4 ::1 ::1 1 2\r\n", "no two addresses"),
    "no destination": (b"PROXY TCP4 1.1.1.1 1 1 2\r\n", "no two addresses"),
    "UDP": (b"PROXY UDP4 1.1.1.1 1.1.1.1 1 2\r\n", "malformed"),
    "a long line": (LONGEST_LINE.replace(b"\r\n", b"f\r\n"), "more than 107"),
    "version 3": (binary(IPV4, "1.1.1.1", version=3), "version 3"),
    "an unknown command": (binary(IPV4, "1.1.1.1", command=2), "command 2"),
    "an unknown family": (binary(0x41), "family 0x41"),
    "an unknown protocol": (binary(0x13, "1.1.1.1"), "family 0x13"),
    "a short address": (binary(IPV4, fields=bytes(11)), "too short"),
    "a long header": (binary(IPV4, fields=bytes(LONGEST)), "at most 4096"),
}


@pytest.mark.parametrize("name", VALID)
def test_a_valid_header_states_its_client(name: str) -> None:
    """The client would be the proxy, or the connection would be closed."""
    data, address = VALID[name]
    assert parse(data + b"POST /") == ProxyHeader(len(data), address)


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_header_is_refused(name: str) -> None:
    """Bytes of a client could be taken for its address, or the address for a request."""
    data, reason = INVALID[name]
    with pytest.raises(ProxyHeaderError, match=reason):
        parse(data)


@given(st.binary(max_size=300))
@example(b"PROXY " + bytes(200))
def test_any_bytes_are_a_header_or_none(data: bytes) -> None:
    """An unexpected exception would end the server's task."""
    for beginning in (b"", b"PROXY TCP4 ", binary(UNSPEC)[:12], binary(IPV4)[:14]):
        try:
            found = parse(beginning + data)
        except ProxyHeaderError:
            continue
        assert found is None or found.size <= len(beginning + data)


@pytest.fixture
def pair() -> Iterator[tuple[trio.socket.SocketType, trio.socket.SocketType]]:
    """Return a connection with the same socket options as a client's."""
    one, other = socket.socketpair()
    with trio.socket.from_stdlib_socket(one) as mine, trio.socket.from_stdlib_socket(other) as its:
        yield mine, its


@pytest.mark.parametrize("header", [line("192.0.2.1"), binary(IPV6, "2001:db8::1", fields=b"1234")])
async def test_a_header_in_single_bytes_is_read_without_the_bytes_behind_it(
    header: bytes, pair: tuple[trio.socket.SocketType, trio.socket.SocketType]
) -> None:
    """A part of the request would be lost, or the header would be read as a request."""
    server, proxy = pair
    found: list[ProxyHeader | None] = []
    reader = ProxyHeaderReader()

    async def read() -> None:
        found.append(await reader.read(server))

    with trio.fail_after(SOON):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            for index in range(len(header) - 1):
                await proxy.send(header[index : index + 1])
                while reader.received() <= index:
                    await trio.lowlevel.checkpoint()
            await proxy.send(header[-1:] + b"POST /")
        assert (await server.recv(100), found) == (b"POST /", [parse(header)])


async def test_a_connection_without_a_byte_has_no_header(
    pair: tuple[trio.socket.SocketType, trio.socket.SocketType],
) -> None:
    """A check of the port would be logged as a fault."""
    server, proxy = pair
    proxy.shutdown(socket.SHUT_WR)
    assert await ProxyHeaderReader().read(server) is None


async def test_a_connection_that_ends_within_its_header_is_refused(
    pair: tuple[trio.socket.SocketType, trio.socket.SocketType],
) -> None:
    """A proxy that fails would not be seen."""
    server, proxy = pair
    await proxy.send(b"PROXY ")
    proxy.shutdown(socket.SHUT_WR)
    with pytest.raises(ProxyHeaderError, match="ended within"):
        await ProxyHeaderReader().read(server)
