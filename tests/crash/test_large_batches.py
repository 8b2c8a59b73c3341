"""Kills while jobs of stored batches wait for deletion: they are not stored again."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest
import trio

from payloadd.journal.sqlite.schema import FILE, STORED_RANGES
from tests.crash.bucket import read_bucket
from tests.crash.journal_copy import read_journal
from tests.support.daemon import END_WITHIN, running_daemon

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemon import Daemon

pytestmark = [pytest.mark.large, pytest.mark.no_cover]

_LIVES: Final = 4


async def test_a_kill_while_stored_jobs_wait_stores_nothing_twice(tmp_path: Path) -> None:
    """A crash after a large batch would store hundreds of payloads again, or lose them."""
    settings = {
        # The last batch of a life waits: until it is stored, its first block has stored jobs, too.
        "BATCH_MAX_PAYLOADS": "130",
        "BATCH_LINGER": "2s",
    }
    state = await _store_over_kills(tmp_path, settings, ["/v1/payloads"] * 100, posts=5)
    with closing(sqlite3.connect(state / FILE)) as journal:
        assert journal.execute("SELECT count(*) FROM jobs").fetchone() == (0,)


async def test_kills_with_many_streams_lose_and_repeat_nothing(tmp_path: Path) -> None:
    """A block has jobs of all streams, and is deleted when the last of their batches is stored."""
    names = [f"s{number}" for number in range(16)]
    settings = {
        "STREAMS": ",".join(names),
        # The streams are stored at different times: so blocks have stored jobs and others.
        "BATCH_MAX_PAYLOADS": "5",
        "BATCH_LINGER": "500ms",
    }
    paths = [f"/v1/payloads/{one}" for one in names] * 3
    await _store_over_kills(tmp_path, settings, paths, posts=10)


async def _store_over_kills(
    tmp_path: Path, settings: dict[str, str], paths: list[str], posts: int
) -> Path:
    """Post payloads to several lives of a daemon, and check that each is stored once.

    Each life but the last is killed while jobs of stored batches wait for deletion. In each life,
    a client for each of ``paths`` posts ``posts`` payloads to it. Returns the STATE_DIR.
    """
    state, bucket = tmp_path / "state", tmp_path / "bucket"
    env = {"STATE_DIR": str(state), "STORE_URL": f"file://{bucket}", **settings}
    promised: list[bytes] = []
    for life in range(_LIVES):
        async with running_daemon(tmp_path, env) as daemon:
            payloads = [b'{"n":%d}' % (life * 10_000 + n) for n in range(len(paths) * posts)]
            async with trio.open_nursery() as nursery:
                for client, path in enumerate(paths):
                    nursery.start_soon(_post_each, daemon, payloads[client :: len(paths)], path)
            promised += payloads
            if life < _LIVES - 1:
                await _until_jobs_wait(state / FILE)
                daemon.signal(signal.SIGKILL)
                await daemon.wait()
                read_journal(state)
            else:
                await _until_stored(bucket, len(promised))
                daemon.signal(signal.SIGTERM)
                drained = await daemon.drained()
                assert (drained["journaled"], drained["lost"]) == (0, 0)
    stored = read_bucket({path.name: path.read_bytes() for path in _objects(bucket)})
    assert stored == dict.fromkeys(promised, 1)
    assert read_journal(state).empty
    return state


async def _post_each(daemon: Daemon, payloads: list[bytes], path: str) -> None:
    """Post payloads one by one over one connection."""
    host, port = daemon.url.removeprefix("http://").split(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        for payload in payloads:
            await stream.send_all(
                b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\n"
                b"content-length: %d\r\n\r\n%s" % (path.encode(), len(payload), payload)
            )
            answer = await stream.receive_some()
            assert answer.startswith(b"HTTP/1.1 202"), answer


async def _until_jobs_wait(path: Path) -> None:
    """Wait until jobs of stored batches wait for deletion, in a block with other jobs."""
    with closing(sqlite3.connect(path)) as other, trio.fail_after(END_WITHIN):
        while not other.execute(STORED_RANGES).fetchall():  # noqa: ASYNC110 - a file
            await trio.sleep(0.002)


async def _until_stored(bucket: Path, payloads: int) -> None:
    with trio.fail_after(END_WITHIN):
        while _payloads_in(bucket) < payloads:  # noqa: ASYNC110 - a folder
            await trio.sleep(0.05)


def _payloads_in(bucket: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in _objects(bucket))


def _objects(bucket: Path) -> list[Path]:
    return [path for path in bucket.rglob("*.ndjson") if path.is_file()]
