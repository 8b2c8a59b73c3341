"""Refused requests in the log and the metrics."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests.support.daemon import running_daemon
from tests.support.loopback import http_client

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.no_cover

FLOOD: Final = 60


async def test_every_refused_request_is_in_the_log(tmp_path: Path) -> None:
    """The log would not show that a client sends only requests that are refused."""
    async with running_daemon(tmp_path) as daemon:
        url = f"{daemon.url}/v1/payloads"
        async with http_client() as client:
            headers = {"Content-Type": "application/json", "User-Agent": "shipper/1"}
            for _ in range(FLOOD):
                answer = await client.post(url, content=b"{}", headers=headers)
                assert answer.status_code == 422
            assert (await client.post(f"{url}/x/y", content=b"{}")).status_code == 404
        host, port = daemon.url.removeprefix("http://").split(":")
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(b"\x16\x03\x01 TLS\r\n\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 400 ")
        metrics = await daemon.metrics()
        counts = {
            (code, route): metrics[f'payloadd_requests_total{{code="{code}",route="{route}"}}']
            for code, route in ((422, "payloads"), (404, "other"), (400, "other"))
        }
        assert counts == {(422, "payloads"): FLOOD, (404, "other"): 1, (400, "other"): 1}
        daemon.signal(signal.SIGTERM)
        assert await daemon.wait() == 0
    lines = daemon.events("request_refused")
    flood = [line for line in lines if line["status"] == 422]
    first = flood[0]
    assert (first["level"], first["user_agent"], first["client"]) == (
        "warning",
        "shipper/1",
        "127.0.0.1",
    )
    assert {line["status"] for line in lines} == {422, 404, 400}
    rest = daemon.event("refusals_suppressed")["suppressed"]
    assert len(flood) + sum(line["suppressed"] for line in flood) + rest == FLOOD
    assert len(flood) < FLOOD
