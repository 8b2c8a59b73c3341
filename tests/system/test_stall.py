"""A daemon that is stopped for some seconds, as by a debugger or a snapshot of the machine."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import httpx
import pytest
import trio

from tests.ingress.rig import COLLECTION, Wire, post
from tests.support.daemon import running_daemon

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.no_cover

LIMITS = {"REQUEST_TIMEOUT": "2s", "KEEPALIVE_TIMEOUT": "2s"}
HEAD = b"POST /v1/payloads HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
STALL = 3.0


async def test_requests_received_during_a_stall_are_answered(tmp_path: Path) -> None:
    """After a pause longer than REQUEST_TIMEOUT every client would get an error."""
    # For each client, the bytes sent before the stall and during it.
    cases = [
        (b"", post()),
        (post()[:20], post()[20:]),
        (post()[:-5], post()[-5:]),
        (CHUNKED, b"16\r\n" + COLLECTION + b"\r\n0\r\n\r\n"),
        (
            CHUNKED + b"5\r\n" + COLLECTION[:5] + b"\r\n",
            b"11\r\n" + COLLECTION[5:] + b"\r\n0\r\n\r\n",
        ),
        (b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"),
    ] * 5
    async with running_daemon(tmp_path, LIMITS) as daemon:
        url = httpx.URL(daemon.url)
        wires: list[Wire] = []
        for before, _ in cases:
            wires.append(Wire(await trio.open_tcp_stream(url.host, url.port or 0)))
            if before:
                await wires[-1].send(before)
        # Its answer shows that the daemon has read the requests above.
        late = Wire(await trio.open_tcp_stream(url.host, url.port or 0))
        await late.send(post())
        assert (await late.answer()).status == 202
        daemon.signal(signal.SIGSTOP)
        for wire, (_, during) in zip(wires, cases, strict=True):
            await wire.send(during)
        await late.send(post())
        await trio.sleep(STALL)
        daemon.signal(signal.SIGCONT)
        with trio.fail_after(60):
            for wire in [*wires, late]:
                assert (await wire.answer()).status in {200, 202}
                await wire.stream.aclose()
        assert not daemon.events("connection_failed")


async def test_timeouts_work_after_a_stall(tmp_path: Path) -> None:
    """A client that stopped sending before a stall would keep its slot for ever."""
    async with running_daemon(tmp_path, LIMITS) as daemon:
        url = httpx.URL(daemon.url)
        async with await trio.open_tcp_stream(url.host, url.port or 0) as stream:
            wire = Wire(stream)
            await wire.send(post()[:-5])
            await trio.sleep(0.3)  # the daemon reads it before the stall
            daemon.signal(signal.SIGSTOP)
            await trio.sleep(STALL)
            daemon.signal(signal.SIGCONT)
            with trio.fail_after(60):
                assert (await wire.answer()).status == 408
