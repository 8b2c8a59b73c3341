"""TLS on the public address: the same requests, by the fast path and by Hypercorn."""

from __future__ import annotations

import random
import ssl
from contextlib import AsyncExitStack, suppress
from time import thread_time
from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest
import trio
import trio.testing
import trustme

from payloadd.config import settings as config
from payloadd.ingress.fastpath.connection import FastPathConnection
from payloadd.ingress.server.tls import open_certificates
from tests.ingress.rig import COLLECTION, SOON, Rig, Wire, post

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from hypercorn.trio.tcp_server import TCPServer

    from tests.ingress.tls_files import Files

TAKEN = [b"1", b'"two"']


async def test_plain_requests_stay_on_the_fast_path(
    files: Files, handed_over: list[TCPServer]
) -> None:
    """TLS would cost twenty times the CPU time."""
    async with files.running() as rig, files.wire(rig) as wire:
        for _ in range(3):
            await wire.send(post())
            assert (await wire.answer()).status == 202
        assert rig.intake.taken == [TAKEN] * 3
        assert not handed_over


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("size", [10, 16_384, 65_536, 500_000, 1_000_000])
async def test_bodies_of_all_sizes_are_received(files: Files, size: int) -> None:
    """No socket announces decrypted bytes in memory: a body would wait for ever."""
    text = b'"%s"' % (b"x" * size)
    async with files.running() as rig, files.wire(rig) as wire:
        with trio.fail_after(SOON):
            for _ in range(2):
                await wire.send(post(b'{"payloads":[%s]}' % text))
                assert (await wire.answer()).status == 202
        assert rig.intake.taken == [[text]] * 2


@pytest.mark.usefixtures("each_way")
async def test_pipelined_requests_over_tls_are_answered(files: Files) -> None:
    """The second request would stay in memory for ever."""
    large = post(b'{"payloads":["%s"]}' % (b"x" * 100_000))
    async with files.running() as rig:
        for many in (post() * 3, post() * 400, large + post(), large * 3):
            async with files.wire(rig) as wire:
                with trio.fail_after(SOON):
                    await wire.send(many)
                    for _ in range(many.count(b"POST /")):
                        assert (await wire.answer()).status == 202


async def test_the_next_request_is_read_after_a_deferred_one_was_refused(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait in the buffer of TLS, of which no event tells, until the idle time is over."""
    monkeypatch.setattr(FastPathConnection, "decoded_immediately", 1)
    deferred: list[Any] = []
    wrong = post(b"{" * 50)
    async with files.running() as rig, files.wire(rig) as wire:
        await wire.send(wrong[:-10])
        await trio.testing.wait_all_tasks_blocked(0.05)
        with monkeypatch.context() as patched:
            patched.setattr(rig.fast_path, "defer", deferred.append)
            await wire.send(wrong[-10:], post())
            await trio.testing.wait_all_tasks_blocked(0.05)
        deferred.pop()()
        with trio.fail_after(SOON):
            assert [(await wire.answer()).status for _ in range(2)] == [400, 202]


@pytest.mark.usefixtures("each_way")
async def test_a_request_in_many_records_is_accepted(files: Files) -> None:
    """Records of TLS do not end where requests end."""
    rng = random.Random(1)  # noqa: S311 - the same pieces every time
    whole = post(b'{"payloads":["%s"]}' % (b"x" * 2000))
    async with files.running() as rig, files.wire(rig) as wire:
        while whole:
            size = rng.randint(1, 300)
            await wire.send(whole[:size])
            whole = whole[size:]
        assert (await wire.answer()).status == 202


async def test_http2_agreed_by_alpn_is_served_by_hypercorn(
    files: Files, handed_over: list[TCPServer]
) -> None:
    """The input of a client that was promised HTTP/2 would be read as HTTP/1.1."""
    h2 = pytest.importorskip("h2.connection", reason="comes with hypercorn")
    async with files.running() as rig, files.wire(rig, files.client_context("h2")) as wire:
        connection = h2.H2Connection()
        connection.initiate_connection()
        await wire.send(connection.data_to_send())
        with trio.fail_after(SOON):
            events = connection.receive_data(bytes(await wire.stream.receive_some()))
        assert any(type(event).__name__ == "RemoteSettingsChanged" for event in events)
        assert len(handed_over) == 1
        await rig.drain()


async def test_an_ordinary_client_is_served(files: Files) -> None:
    """Common HTTP clients such as httpx, requests and curl would fail."""
    async with files.running() as rig:
        port = rig.listeners[0].socket.getsockname()[1]
        url = f"https://127.0.0.1:{port}"
        async with httpx.AsyncClient(verify=files.client_context(), base_url=url) as client:
            assert (await client.get("/healthz")).status_code == 200
            answer = await client.post("/v1/payloads", json={"payloads": [1, "two"]})
            assert answer.status_code == 202


async def test_a_client_certificate_is_required(files: Files) -> None:
    """Every client could post, with or without a certificate."""
    clients = trustme.CA()
    clients.cert_pem.write_to_path(files.folder / "clients.pem")
    async with files.running(TLS_CLIENT_CA=str(files.folder / "clients.pem")) as rig:
        known, unknown = files.client_context(), files.client_context()
        clients.issue_cert("client").configure_cert(known)
        trustme.CA().issue_cert("client").configure_cert(unknown)
        async with files.wire(rig, known) as wire:
            await wire.send(post())
            assert (await wire.answer()).status == 202
        for context in (files.client_context(), unknown):
            with pytest.raises(trio.BrokenResourceError):
                await _post(files, rig, context)
        assert rig.intake.taken == [TAKEN]


async def _post(files: Files, rig: Rig, context: ssl.SSLContext) -> None:
    async with files.wire(rig, context) as wire:
        await wire.send(post())
        await wire.answer()


@pytest.mark.parametrize(
    "sent", [b"", b"\x16\x03\x01", post(), b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05hello"]
)
async def test_bytes_that_are_no_handshake_end_the_connection(files: Files, sent: bytes) -> None:
    """A client without TLS, or a scanner, would keep its slot or fill the log."""
    async with files.running(1, REQUEST_TIMEOUT="200ms") as rig:
        async with rig.wire() as wire:
            await wire.send(sent)
            with trio.fail_after(SOON):
                await _wait_until_closed(wire)
        async with files.wire(rig) as wire:
            await wire.send(post())
            assert (await wire.answer()).status == 202


async def _wait_until_closed(wire: Wire) -> None:
    with suppress(trio.BrokenResourceError):
        await wire.rest()


async def test_a_client_that_leaves_during_the_handshake_frees_its_slot(files: Files) -> None:
    """The client would keep its slot until REQUEST_TIMEOUT."""
    async with files.running(1) as rig:
        async with rig.wire() as wire:
            await wire.send(b"\x16\x03\x01")
        await rig.until_unconnected()
        async with files.wire(rig) as wire:
            await wire.send(post())
            assert (await wire.answer()).status == 202


@pytest.mark.usefixtures("frozen_heap")
async def test_handshakes_do_not_block_the_event_loop(files: Files) -> None:
    """A thousand clients that reconnect at once would delay all others by a second."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context = files.client_context()
        context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1").do_handshake()
    hello = outgoing.read()
    longest = [0.0]

    async def watch() -> None:
        while True:
            started = thread_time()
            await trio.lowlevel.checkpoint()
            longest[0] = max(longest[0], thread_time() - started)

    async with files.running(max_connections=200) as rig, AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(rig.wire()) for _ in range(200)]
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            for wire in wires:
                wire.stream.socket._sock.send(hello)  # type: ignore[attr-defined] # no checkpoint
            with trio.fail_after(SOON):
                for wire in wires:
                    assert await wire.stream.receive_some(100)
            nursery.cancel_scope.cancel()
    # All handshakes together take a tenth of a second or more.
    assert longest[0] < 0.05


async def test_a_handshake_does_not_delay_the_drain(files: Files) -> None:
    """A silent client would delay the end of the daemon by REQUEST_TIMEOUT."""
    async with files.running() as rig, rig.wire() as wire:
        await wire.send(b"\x16\x03\x01")
        await trio.testing.wait_all_tasks_blocked()
        await rig.drain()  # within SOON, which is less than REQUEST_TIMEOUT


@pytest.mark.usefixtures("each_way")
async def test_an_answer_ends_with_close_notify(files: Files) -> None:
    """A client could not tell a complete answer from one that was cut off on the way."""
    async with files.running() as rig, files.wire(rig) as wire:
        await wire.send(post(COLLECTION, "Content-Type: application/json", "Connection: close"))
        assert (await wire.answer()).status == 202
        # Without https_compatible, trio raises an error if close_notify is missing.
        cast("Any", wire.stream)._https_compatible = False
        assert await wire.rest() == b""


async def test_a_slow_client_gets_408_in_tls(files: Files) -> None:
    """An incomplete body would hold its slot, and its client would get no answer."""
    async with files.running(REQUEST_TIMEOUT="200ms") as rig, files.wire(rig) as wire:
        await wire.send(post()[:-3])
        answer = await wire.answer()
        assert (answer.status, answer.document["code"]) == (408, "TIMEOUT")


async def test_a_broken_record_ends_the_connection(files: Files) -> None:
    """Bytes that were changed on the way would be accepted, or crash the fast path."""
    async with files.running() as rig, files.wire(rig) as wire:
        await wire.send(post())
        assert (await wire.answer()).status == 202
        transport = cast("Any", wire.stream).transport_stream
        await transport.send_all(b"\x17\x03\x03\x00\x13" + b"x" * 19)
        with trio.fail_after(SOON):
            await _wait_until_closed(wire)
        assert rig.intake.taken == [TAKEN]


async def test_certificates_are_reloaded(
    files: Files, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """A renewed certificate would need a restart; a bad one would end the service."""
    certificates = open_certificates(config.load(files.environ))
    assert certificates is not None
    before = certificates.context
    (files.folder / "cert.pem").write_text("no certificate")
    certificates.reload()
    assert certificates.context is before
    files.write()
    certificates.reload()
    assert certificates.context is not before
    assert [line["event"] for line in log_lines] == ["tls_not_reloaded", "tls_reloaded"]
