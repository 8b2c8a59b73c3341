"""The disk of the shared journal's server is full: POSTs are refused, and nothing is lost."""

from __future__ import annotations

import signal
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests.crash.disk import SmallDisk, small_disk
from tests.support.clients import Posts
from tests.support.daemon import Daemon, running_daemon
from tests.support.loopback import http_client
from tests.support.postgres import PostgresServer, need_postgres
from tests.support.store import fake_s3

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.no_cover, pytest.mark.large]

_WITHIN: Final = 60.0
_SETTINGS: Final = {"BATCH_MAX_PAYLOADS": "5", "BATCH_LINGER": "0s", "UPLOAD_TIMEOUT": "2s"}
_SIZE: Final = 100_000
"""Bytes of a payload: more than fits into pages that the server has already."""


@contextmanager
def _server(part: str) -> Iterator[tuple[PostgresServer, SmallDisk]]:
    """Run a server whose data, or whose write-ahead log, is on a small disk."""
    need_postgres()
    with tempfile.TemporaryDirectory(prefix="payloadd-full-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with small_disk(folder / "disk", "96m") as disk:
            server = PostgresServer(
                folder / "server", data=disk.path / "data" if part == "data" else None
            )
            log = (disk.path if part == "log" else server.folder) / "log"
            server.create("--wal-segsize=1", f"--waldir={log}")
            try:
                server.start()
                yield server, disk
            finally:
                server.stop()


def _payloads(first: int, count: int) -> list[list[bytes]]:
    return [[b'"%d %s"' % (number, b"x" * _SIZE)] for number in range(first, first + count)]


async def _until_ready(daemon: Daemon, status: int) -> str:
    """Wait until ``/readyz`` answers with ``status``; returns the body."""
    with trio.fail_after(_WITHIN):
        while (answer := await daemon.ready()).status_code != status:  # noqa: ASYNC110 - polled
            await trio.sleep(0.05)
    return answer.text


async def _be_refused(daemon: Daemon, posts: Posts) -> None:
    """Post until POSTs are refused with 503 DISK_ERROR, and look at what else the daemon says."""
    first = 1000
    while posts.answers["503 DISK_ERROR"] < 5:
        await posts.run(_payloads(first, 1))
        first += 1
        assert first < 3000, "the disk is not full"
    assert set(posts.answers) == {"202", "503 DISK_ERROR"}, posts.summary()
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in posts.refusals)
    assert "DISK_ERROR" in await _until_ready(daemon, 503)
    async with http_client() as client:
        assert (await client.get(f"{daemon.url}/healthz")).status_code == 200


@pytest.mark.parametrize("part", ["data", "log"])
async def test_a_full_disk_of_the_database_refuses_and_recovers(tmp_path: Path, part: str) -> None:
    """Payloads would be lost, or the daemons would need a restart.

    Without space for data the server refuses writes; without space for its log it crashes, and is
    started again once there is space.
    """
    with _server(part) as (server, disk):
        async with fake_s3("hang") as store:
            env = {**store.environ, **_SETTINGS, "JOURNAL_URL": server.url()}
            async with running_daemon(tmp_path, env) as daemon:
                posts = Posts(daemon.url)
                await posts.run(_payloads(0, 10))
                assert posts.answers == {"202": 10}, posts.summary()
                disk.fill(0)
                await _be_refused(daemon, posts)
                said = server.log.read_text()
                assert "No space left on device" in said
                assert ("PANIC" in said) == (part == "log")
                disk.free(0)
                if part == "log":
                    await trio.to_thread.run_sync(server.stop)
                    await trio.to_thread.run_sync(server.start)
                await _until_ready(daemon, 200)
                before = posts.answers["202"]
                await posts.run(_payloads(5000, 10))
                assert posts.answers["202"] == before + 10, posts.summary()
                await store.end()
                await daemon.wait_until_stored(len(posts.acknowledged), _WITHIN)
                daemon.signal(signal.SIGTERM)
                line = await daemon.drained()
                assert (daemon.process.returncode, line["journaled"], line["lost"]) == (0, 0, 0)
            stored = Counter(store.payloads())
    assert max(stored.values()) == 1
    assert set(posts.acknowledged) <= stored.keys()
    unknown = sum("not known yet" in answer.text for answer in posts.refusals)
    assert len(stored) <= len(posts.acknowledged) + unknown
