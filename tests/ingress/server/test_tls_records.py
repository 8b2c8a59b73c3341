"""TLS by the record: what goes together, what comes unasked, and how it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.config import settings as config
from payloadd.ingress.server.tls import TlsStream, open_certificates
from tests.ingress.rig import post

if TYPE_CHECKING:
    from hypercorn.trio.tcp_server import TCPServer

    from tests.ingress.tls_files import Files

TAKEN = [b"1", b'"two"']


@pytest.mark.usefixtures("each_way")
async def test_a_request_right_behind_the_handshake(files: Files) -> None:
    """It lies in memory, announced by no socket: most clients' first request would time out."""
    async with files.running() as rig, files.records(rig) as client:
        await client.handshake()
        client.write(post())
        await client.send()
        with trio.fail_after(10):
            assert b" 202 " in await client.answer()
    assert rig.intake.taken == [TAKEN]


async def test_a_body_behind_its_head_stays_in_the_lane(
    files: Files, handed_over: list[TCPServer]
) -> None:
    """Most clients send them one after the other, and all would end at Hypercorn."""
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
async def test_an_end_right_behind_a_request(files: Files, end: int | None, status: bytes) -> None:
    """It comes once: who forgets it lets the client wait until its time is up."""
    async with files.running() as rig, files.records(rig) as client:
        await client.handshake()
        client.write(post()[:end])
        client.close_notify()
        await client.send()
        with trio.fail_after(10):
            assert status in await client.rest()


@pytest.mark.usefixtures("each_way")
async def test_every_end_says_so(files: Files) -> None:
    """A client could not tell it from one that somebody on the way has made up (RFC 8446, 6.1)."""
    async with files.running(KEEPALIVE_TIMEOUT="200ms") as rig, files.records(rig) as client:
        await client.handshake()
        await client.send()
        with trio.fail_after(10):
            assert await client.rest() == b""


@pytest.mark.usefixtures("each_way")
async def test_an_answer_to_who_is_still_sending(files: Files) -> None:
    """A socket closed with bytes in it is reset, and the answer is lost on its way."""
    async with files.running() as rig, files.records(rig) as client:
        await client.handshake()
        client.write(post(b"x" * 900_000, "Content-Type: text/plain"))
        with trio.fail_after(10):
            await client.send()
            for _ in range(20):
                client.write(b"x" * 10_000)
                await client.send()
            assert b" 415 " in await client.rest()


async def test_http2_is_known_by_what_was_agreed_on(files: Files) -> None:
    """A preface in two segments would be told in HTTP/1.1 that it is too slow."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
    slow = files.running(REQUEST_TIMEOUT="300ms", KEEPALIVE_TIMEOUT="800ms")
    async with slow as rig, files.records(rig, "h2") as client:
        await client.handshake()
        client.write(preface[:5])
        await client.send()
        await wait_all_tasks_blocked()
        client.write(preface[5:])
        await client.send()
        with trio.fail_after(10):
            assert b"HTTP/1.1" not in await client.rest()


async def test_what_tls_says_by_itself_is_sent_and_bounded(files: Files) -> None:
    """A client that asks for new keys again and again, and reads nothing, would fill the memory."""
    certificates = open_certificates(config.load(files.environ))
    assert certificates is not None
    ours, theirs = trio.socket.socketpair()
    with ours, theirs:
        stream = TlsStream(trio.SocketStream(ours), certificates.context)
        stream._outgoing.write(b"new keys")  # as OpenSSL does when it reads of new keys
        assert stream.receive_now(1) is None
        assert await theirs.recv(100) == b"new keys"
        stream._outgoing.write(b"new keys" * 1_000_000)
        with pytest.raises(trio.BrokenResourceError, match="does not read the answers"):
            stream.receive_now(1)
