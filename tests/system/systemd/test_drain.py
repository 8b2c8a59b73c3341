"""``systemctl stop`` under load, with a slow store."""

from __future__ import annotations

import re
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio

from tests.crash.proxy import Proxy
from tests.support.clients import Posts
from tests.system.systemd.unit import configured

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.s3 import S3Server
    from tests.system.systemd.machine import Machine
    from tests.system.systemd.unit import Unit

pytestmark = pytest.mark.no_cover

CLIENTS: Final = 16
STOP_SECONDS: Final = 4
"""TimeoutStopSec= of the unit in this test; the drain takes longer."""
PUT_SECONDS: Final = 0.5
WORKERS: Final = 8
BACKLOG: Final = 100


class SlowProxy(Proxy):
    """A proxy that delays every request to an S3 server."""

    async def _ask(self, *request: Any) -> Any:  # noqa: ANN401 - as it is passed on
        await trio.sleep(PUT_SECONDS)
        return await super()._ask(*request)


async def test_a_stop_under_load_loses_nothing(machine: Machine, seaweed: S3Server) -> None:
    """An upgrade would lose payloads, or systemd would kill a drain that makes progress."""
    bucket = await trio.to_thread.run_sync(seaweed.make_bucket, "stopped")
    proxy = SlowProxy(seaweed)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        env = {**proxy.environ, "STORE_URL": f"s3://{bucket}", "MAX_WORKERS": str(WORKERS)}
        env |= {"BATCH_MAX_PAYLOADS": "1"}
        env |= {"DRAIN_TIMEOUT": "7s", "UPLOAD_TIMEOUT": "10s"}
        limit = f"TimeoutStopSec={STOP_SECONDS}"
        async with configured(machine, env, service=limit) as unit:
            await unit.systemctl("start")
            posts, status_lines = await _stopped_under_load(unit)
            assert await unit.show("Result") == "success"
            assert await unit.show("ExecMainStatus") == "0"
            journaled = _payloads(machine.root / "var/lib/payloadd/journal.db")
            status = await unit.show("StatusText")
        nursery.cancel_scope.cancel()
    objects = await trio.to_thread.run_sync(seaweed.objects, bucket)
    stored = {line for body in objects.values() for line in body.splitlines()}
    assert posts.acknowledged
    assert set(posts.acknowledged) <= stored | journaled
    # The drain could not upload all payloads in time, and its status line showed that.
    assert journaled
    numbers = re.fullmatch(r"drained: (\d+) stored, (\d+) journaled, 0 lost", status)
    assert numbers is not None, status
    # Uploads under way at the deadline may have been stored; the journal keeps them too.
    assert len(stored) - WORKERS <= int(numbers[1]) <= len(stored)
    assert int(numbers[2]) == len(journaled)
    lines = {
        line for line in status_lines if line.startswith("draining: ") and "jobs queued" in line
    }
    assert len(lines) > 1, status_lines


async def _stopped_under_load(unit: Unit) -> tuple[Posts, list[str]]:
    """Stop a unit while 16 clients post to it; returns their answers and the status lines."""
    posts, status_lines = Posts(unit.url, pause=0.1), list[str]()
    collections = [[b"%d" % number] for number in range(100_000)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(posts.run, collections, CLIENTS)
        nursery.start_soon(_record_status, unit, status_lines)
        await posts.wait_until_acknowledged(10 * BACKLOG)
        start = time.monotonic()
        await unit.systemctl("stop")
        assert time.monotonic() - start > STOP_SECONDS
        nursery.cancel_scope.cancel()
    return posts, status_lines


async def _record_status(unit: Unit, status_lines: list[str]) -> None:
    """Read the status line again and again, as an administrator would."""
    while True:
        status_lines.append(await unit.show("StatusText"))
        await trio.sleep(0.3)


def _payloads(journal: Path) -> set[bytes]:
    """Return the payloads in the rows of a journal."""
    with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as database:
        return {line for (lines,) in database.execute("SELECT lines FROM jobs")
                for line in lines.splitlines()}  # fmt: skip
