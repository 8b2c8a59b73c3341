"""A daemon with as many streams as the settings allow, all of them active."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
import trio

from tests.support.daemon import running_daemon
from tests.support.loopback import http_client

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

KIB = 2**10
_STREAMS = [f"s{number}" for number in range(1000)]
_ROUNDS = 8
_BODY = b'"%s"\n' % (b"x" * (KIB - 3)) * 32
LARGEST_RSS = 400 * 2**20
"""Bytes: MAX_QUEUE_BYTES, and the memory of the process with 1,000 streams."""


@pytest.mark.large
async def test_a_thousand_active_streams_make_full_objects(tmp_path: Path) -> None:
    """1,000 streams in 64 MiB would make objects of 64 KiB, or take the memory of full ones."""
    settings = {
        "STREAMS": ",".join(_STREAMS),
        "KEY_TEMPLATE": "{stream}/{id}.ndjson",
        "STORE_URL": f"file://{tmp_path}/objects",
        "BATCH_MAX_PAYLOADS": "10000",
        "BATCH_MAX_BYTES": f"{_ROUNDS * len(_BODY)}B",
        "BATCH_LINGER": "1h",
    }
    async with running_daemon(tmp_path, settings) as daemon, http_client() as client:
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(_post, client, f"{daemon.url}/v1/payloads", _STREAMS[number::4])
        await daemon.wait_until_stored(_ROUNDS * 32 * len(_STREAMS), within=60)
        assert daemon.peak_rss() < LARGEST_RSS
        daemon.signal(signal.SIGTERM)
        drained = await daemon.drained()
        assert (drained["journaled"], drained["lost"]) == (0, 0)
    objects = [one for one in (tmp_path / "objects").rglob("*") if one.is_file()]
    assert {one.stat().st_size for one in objects} == {_ROUNDS * len(_BODY)}
    assert sorted(one.parent.name for one in objects) == sorted(_STREAMS)


async def _post(client: httpx.AsyncClient, url: str, streams: list[str]) -> None:
    headers = {"content-type": "application/x-ndjson"}
    for _ in range(_ROUNDS):
        for name in streams:
            answer = await client.post(f"{url}/{name}", content=_BODY, headers=headers)
            assert answer.status_code == 202, answer.text
