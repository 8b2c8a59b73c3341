"""Connections that begin with a PROXY header (CLIENT_ADDRESS=proxy)."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.ingress.rig import SOON, post, running
from tests.support.proxy_headers import IPV4, LOCAL, UNIX, binary, line

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from pathlib import Path

    from tests.ingress.tls_files import Files

pytestmark = pytest.mark.usefixtures("each_way")

PROXY: dict[str, Any] = {"TRUSTED_PROXIES": "127.0.0.1, unix", "CLIENT_ADDRESS": "proxy"}
BEHIND_OTHERS: dict[str, Any] = {"TRUSTED_PROXIES": "10.0.0.0/8", "CLIENT_ADDRESS": "proxy"}
WRONG = post(b"{", "Content-Type: application/json")


@pytest.mark.parametrize("header", [line("192.0.2.1"), binary(IPV4, "192.0.2.1", fields=b"123")])
async def test_the_stated_client_is_the_client(
    header: bytes, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """All clients behind a proxy would share one rate, and the log would show the proxy."""
    async with running(**PROXY, RATE_LIMIT="2/h burst 2") as rig:
        async with rig.wire() as wire:
            await wire.send(header, post())
            assert (await wire.answer()).status == 202
            await wire.send(WRONG)
            assert (await wire.answer()).status == 400
            await wire.send(post())
            assert (await wire.answer()).status == 429
        async with rig.wire() as other:
            await other.send(line("192.0.2.2"), post())
            assert (await other.answer()).status == 202
    assert [one["client"] for one in log_lines] == ["192.0.2.1", "192.0.2.1"]


@pytest.mark.parametrize(
    ("header", "client"),
    [
        (binary(0, command=LOCAL), "127.0.0.1"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
        (binary(UNIX), "unix"),
    ],
)
async def test_without_an_address_the_client_is_the_peer(
    header: bytes, client: str, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """Health checks of a proxy would be refused."""
    limited = running(**PROXY, MAX_CONNECTIONS_PER_CLIENT="1")
    async with limited as rig, rig.wire() as first, rig.wire() as wire:
        await first.send(header, post())
        assert (await first.answer()).status == 202
        await wire.send(header, WRONG)
        assert (await wire.answer()).status == 400
    assert [one["client"] for one in log_lines] == [client]


@pytest.mark.parametrize("sent", [post(), b"PROXY TCP4 x\r\n", b"PROXY " + bytes(200)])
async def test_a_trusted_peer_without_a_valid_header_is_closed(
    sent: bytes, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """A client that reaches the port through the proxy's machine could be any other client."""
    async with running(**PROXY) as rig:
        for _ in range(2):
            async with rig.wire() as wire:
                await wire.send(sent)
                with pytest.raises((trio.BrokenResourceError, EOFError)):
                    await wire.answer()
        assert rig.intake.taken == []
    (refused,) = log_lines
    assert (refused["event"], refused["proxy"]) == ("proxy_header_refused", "127.0.0.1")
    assert "PROXY header" in refused["reason"]


async def test_a_header_that_is_late_is_closed(
    log_lines: list[MutableMapping[str, Any]],
) -> None:
    """Connections without a header would hold slots for ever."""
    async with running(**PROXY, REQUEST_TIMEOUT="0.3s") as rig, rig.wire() as wire:
        await wire.send(b"PROXY TCP4")
        with trio.fail_after(SOON):
            assert await wire.rest() == b""
    assert "within REQUEST_TIMEOUT" in log_lines[0]["reason"]


async def test_a_connection_that_ends_before_its_first_byte_is_no_fault() -> None:
    """The check of a port every few seconds would fill the log."""
    async with running(**PROXY) as rig, rig.wire() as wire:
        await wire.stream.send_eof()
        assert await wire.rest() == b""


async def test_a_header_in_pieces_before_a_request_in_pieces_is_read() -> None:
    """A proxy that sends its header by itself would be refused."""
    async with running(**PROXY) as rig, rig.wire() as wire:
        header, request = line("192.0.2.1"), post()
        for piece in (header[:4], header[4:-1], header[-1:], request[:40], request[40:]):
            await wire.send(piece)
            await trio.testing.wait_all_tasks_blocked()
        assert (await wire.answer()).status == 202


async def test_the_connections_of_a_stated_client_are_counted(
    log_lines: list[MutableMapping[str, Any]],
) -> None:
    """One client behind a proxy could take all connections, or all clients have those of one."""
    # The clients may be in the network of the proxies.
    settings = {**PROXY, "TRUSTED_PROXIES": "127.0.0.1, 192.0.2.0/24"}
    async with running(**settings, MAX_CONNECTIONS_PER_CLIENT="1") as rig, rig.wire() as first:
        for wire, address in ((first, "192.0.2.1"), (None, "192.0.2.2")):
            async with rig.wire() as new:
                await (wire or new).send(line(address), post())
                assert (await (wire or new).answer()).status == 202
        async with rig.wire() as second:
            await second.send(line("192.0.2.1"), post())
            with pytest.raises((trio.BrokenResourceError, EOFError)):
                await second.answer()
    (refused,) = log_lines
    assert (refused["event"], refused["client"]) == ("client_connections_refused", "192.0.2.1")


async def test_other_peers_send_no_header(log_lines: list[MutableMapping[str, Any]]) -> None:
    """A client could state any address, or would have to send a header."""
    async with running(**BEHIND_OTHERS) as rig:
        async with rig.wire() as wire:
            await wire.send(post())
            assert (await wire.answer()).status == 202
        async with rig.wire() as wire:
            await wire.send(line("192.0.2.1"), post())
            assert (await wire.answer()).status == 400
    assert [one["client"] for one in log_lines] == ["127.0.0.1"]


async def test_the_header_precedes_the_tls_handshake(files: Files) -> None:
    """A proxy that passes TLS on cannot put its header into it."""
    async with files.running(**PROXY) as rig:
        port = rig.listeners[0].socket.getsockname()[1]
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(binary(IPV4, "192.0.2.1"))
        context = files.client_context()
        async with trio.SSLStream(stream, context, server_hostname="127.0.0.1") as tls:
            await tls.send_all(post())
            assert (await tls.receive_some()).startswith(b"HTTP/1.1 202")


async def test_a_peer_on_a_unix_socket_sends_a_header(
    tmp_path: Path, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """``unix`` in TRUSTED_PROXIES would not hold for the PROXY protocol."""
    path = tmp_path / "socket"
    async with running(**PROXY, BIND=f"unix:{path}"):
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(line("192.0.2.1") + WRONG)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 400")
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(post())
            with suppress(trio.BrokenResourceError):
                assert not await stream.receive_some()
    assert [one.get("client", one.get("proxy")) for one in log_lines] == ["192.0.2.1", "unix"]


async def test_a_drain_ends_connections_that_have_sent_no_header() -> None:
    """A stop would wait for REQUEST_TIMEOUT."""
    async with running(**PROXY) as rig, rig.wire() as wire:
        await wire.send(b"PROXY ")
        await trio.testing.wait_all_tasks_blocked()
        await rig.drain()
        assert await wire.rest() == b""
