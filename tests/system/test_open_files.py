"""A daemon with fewer descriptors than clients."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import httpx
import pytest
import trio

from payloadd.open_files import ADMIN_CONNECTIONS
from tests.ingress.rig import Wire, post
from tests.support.daemon import START_WITHIN, run_command, started

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.no_cover

LARGE = post(b'{"payloads":["%s"]}' % (b"x" * 300_000))
"""A request so large that its payload goes into a segment, which is a file."""


async def test_clients_leave_descriptors_for_the_journal_and_the_store(tmp_path: Path) -> None:
    """Clients could use all descriptors, and the journal and the store would have none."""
    limited = ("prlimit", "--nofile=244:244", sys.executable, "-m", "payloadd")
    # One worker, so that the descriptors reserved for uploads do not hide a lack of others.
    async with started(tmp_path, {"MAX_WORKERS": "1"}, command=limited) as daemon:
        await daemon.wait_for_event("listening", START_WITHIN)
        used = daemon.event("open_files_limited")["max_connections_used"]
        assert used == 51  # 128 for the admin address, 64 for the daemon, one for the worker
        url, admin = httpx.URL(daemon.url), httpx.URL(daemon.admin_url)
        async with AsyncExitStack() as stack:
            for one in [admin] * ADMIN_CONNECTIONS + [url] * (2 * used):
                stream = await trio.open_tcp_stream(one.host, one.port or 0)
                await stack.enter_async_context(stream)
            for body in (post(), LARGE) * 4:
                async with await trio.open_tcp_stream(url.host, url.port or 0) as stream:
                    await stream.send_all(body)
                    with trio.fail_after(60):
                        assert (await Wire(stream).answer()).status == 202
            assert (await daemon.ready()).json() == {"status": "ready", "troubles": []}
            await daemon.wait_until_stored(8)
        assert not daemon.events("accept_failed")
        assert len(daemon.events("connections_full")) >= 1


async def test_too_few_descriptors_refuse_the_start(tmp_path: Path) -> None:
    """The daemon would start, and fail under its first load."""
    done = await run_command("serve", folder=tmp_path, prefix=("prlimit", "--nofile=100:100"))
    assert done.returncode == 78
    assert "open files" in done.stderr
    assert "MAX_WORKERS" in done.stderr
    assert "Traceback" not in done.stderr
