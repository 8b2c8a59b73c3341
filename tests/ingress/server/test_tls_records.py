"""Records of TLS: records sent together, records that TLS sends by itself, and the end."""

from __future__ import annotations

import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.config import settings as config
from payloadd.ingress.server.tls import TlsStream, open_certificates
from tests.ingress.rig import SOON, post
from tests.ingress.tls_files import Records

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hypercorn.trio.tcp_server import TCPServer

    from tests.ingress.tls_files import Files

TAKEN = [b"1", b'"two"']


@pytest.mark.usefixtures("each_way")
async def test_a_request_in_the_packet_of_the_handshake_is_answered(files: Files) -> None:
    """No socket announces decrypted bytes: the first request of most clients would time out."""
    async with files.running() as rig, files.records(rig) as client:
        await client.handshake()
        client.write(post())
        await client.send()
        with trio.fail_after(SOON):
            assert b" 202 " in await client.answer()
    assert rig.intake.taken == [TAKEN]


async def test_a_body_in_its_own_record_stays_on_the_fast_path(
    files: Files, handed_over: list[TCPServer]
) -> None:
    """Most clients send head and body separately, and all would be served by Hypercorn."""
    whole = post()
    async with files.running() as rig, files.wire(rig) as wire:
        for _ in range(2):
            await wire.send(whole[:-5])
            await wait_all_tasks_blocked()
            await wire.send(whole[-5:])
            assert (await wire.answer()).status == 202
    assert not handed_over


@pytest.mark.parametrize(
    ("end", "status"), [(None, b" 202 "), (-5, b" 400 "), (30, b" 400 ")], ids=["", "body", "head"]
)
async def test_a_request_with_the_end_of_tls_is_answered(
    files: Files, end: int | None, status: bytes
) -> None:
    """The end arrives once: if it were forgotten, the client would wait until its time limit."""
    async with files.running() as rig, files.records(rig) as client:
        await client.handshake()
        client.write(post()[:end])
        client.close_notify()
        await client.send()
        with trio.fail_after(SOON):
            assert status in await client.rest()


@pytest.mark.usefixtures("each_way")
async def test_every_connection_ends_with_close_notify(files: Files) -> None:
    """A client could not detect an end that an attacker has forged (RFC 8446, section 6.1)."""
    async with files.running(KEEPALIVE_TIMEOUT="200ms") as rig, files.records(rig) as client:
        await client.handshake()
        await client.send()
        with trio.fail_after(SOON):
            assert await client.rest() == b""


@pytest.mark.usefixtures("each_way")
async def test_a_client_that_is_still_sending_receives_its_answer(files: Files) -> None:
    """A socket closed with unread bytes is reset, and the answer is lost on its way."""
    async with files.running() as rig, files.records(rig) as client:
        await client.handshake()
        client.write(post(b"x" * 900_000, "Content-Type: text/plain"))
        with trio.fail_after(SOON):
            await client.send()
            for _ in range(20):
                client.write(b"x" * 10_000)
                await client.send()
            assert b" 415 " in await client.rest()


async def test_http2_is_known_from_alpn(files: Files) -> None:
    """A preface in two segments would be answered in HTTP/1.1 that it is too slow."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
    slow = files.running(REQUEST_TIMEOUT="300ms", KEEPALIVE_TIMEOUT="800ms")
    async with slow as rig, files.records(rig, "h2") as client:
        await client.handshake()
        client.write(preface[:5])
        await client.send()
        await wait_all_tasks_blocked()
        client.write(preface[5:])
        await client.send()
        with trio.fail_after(SOON):
            assert b"HTTP/1.1" not in await client.rest()


@contextmanager
def connected(files: Files) -> Iterator[tuple[TlsStream, socket.socket]]:
    """Yield the server's end of a connection before its handshake, and the client's socket."""
    certificates = open_certificates(config.load(files.environ))
    assert certificates is not None
    ours, theirs = socket.socketpair()
    ours.settimeout(0)
    with ours, theirs:
        yield TlsStream(ours, certificates.context), theirs


async def test_replies_of_tls_are_sent_and_limited(files: Files) -> None:
    """A client that requests new keys without end, and reads nothing, would fill the memory."""
    with connected(files) as (stream, theirs):
        stream._outgoing.write(b"new keys")  # as OpenSSL does for a key update
        assert stream.receive_now(1) is None
        assert theirs.recv(100) == b"new keys"
        stream._outgoing.write(b"new keys" * 1_000_000)
        with pytest.raises(trio.BrokenResourceError, match="does not read the replies"):
            stream.receive_now(1)


async def test_a_read_of_few_bytes_leaves_the_others_in_the_kernel(files: Files) -> None:
    """Connections that wait for memory would hold records that no bound counts."""
    with connected(files) as (stream, theirs):
        client = Records(
            trio.SocketStream(trio.socket.from_stdlib_socket(theirs)), files.client_context()
        )

        async def shake_hands() -> None:
            await client.handshake()
            await client.send()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(shake_hands)
            while not stream.continue_handshake():
                await wait_all_tasks_blocked()
                stream.receive_handshake()
        client.write(bytes(100_000))
        client.send_now()
        found = stream.receive_now(8 * 2**10)
        assert found == bytes(8 * 2**10)
        assert stream.unread > 70_000
        while len(found) < 100_000:
            found += stream.receive_now(8 * 2**10) or b"the end"
        assert found == bytes(100_000)
