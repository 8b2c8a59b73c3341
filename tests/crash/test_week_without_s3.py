"""A long outage of S3: the journal fills, the daemon is restarted, nothing is lost."""

from __future__ import annotations

import signal
from collections import Counter
from typing import TYPE_CHECKING, Final

import pytest
import trio

from payloadd.journal.sqlite.segments import space
from tests.crash.journal_copy import read_journal
from tests.support.clients import Posts
from tests.support.daemon import Daemon, running_daemon
from tests.support.store import FakeS3, fake_s3

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.no_cover

_MIB: Final = 2**20
_SETTINGS: Final = {
    "MAX_QUEUE": "20",
    "MAX_LENGTH": "1MiB",
    "MAX_QUEUE_BYTES": "1MiB",
    "JOURNAL_MAX_BYTES": "24MiB",
    "BATCH_MAX_PAYLOADS": "10",
    "DRAIN_TIMEOUT": "1s",
}
_SIZE: Final = 2**16
_FIT: Final = 24 * _MIB // (_SIZE + 100)
"""The number of payloads that fit into the journal, at least."""


def _payloads(count: int) -> list[list[bytes]]:
    return [[b'"%06d%s"' % (number, b"x" * (_SIZE - 8))] for number in range(count)]


async def test_a_long_outage_loses_nothing_and_its_disk_space_is_freed(tmp_path: Path) -> None:
    """A week without S3 would lose payloads, or the journal would never shrink."""
    async with fake_s3() as store:
        store.begin("down")
        env = {**store.environ, **_SETTINGS}
        promised = await _fill_the_journal(tmp_path, env)
        await store.end()
        async with running_daemon(tmp_path, env) as daemon:
            await daemon.wait_until_stored(len(promised))
            await _until_shrunk(tmp_path / "payloadd-data")
            daemon.signal(signal.SIGTERM)
            line = await daemon.drained()
        assert (line["stored"], line["journaled"], line["lost"]) == (len(promised), 0, 0)
        _see_all_stored(store, promised)
    assert (await trio.to_thread.run_sync(read_journal, tmp_path / "payloadd-data")).empty


async def _fill_the_journal(folder: Path, env: dict[str, str]) -> list[bytes]:
    """Post until the journal is full, then stop the daemon; returns the acknowledged payloads."""
    async with running_daemon(folder, env) as daemon:
        posts = Posts(daemon.url)
        await posts.run(_payloads(_FIT + 30), 8)
        assert set(posts.answers) == {"202", "503 JOURNAL_FULL"}, posts.summary()
        assert posts.answers["202"] >= _FIT
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in posts.refusals)
        # The rest is too small for small payloads too.
        await posts.run([[b'"%d%s"' % (number, b"y" * 900)] for number in range(_SIZE // 900 + 1)])
        await _see_it_full(daemon)
        daemon.signal(signal.SIGTERM)
        line = await daemon.drained(within=60)
        assert daemon.process.returncode == 0
        count = len(posts.acknowledged)
        assert (line["stored"], line["journaled"], line["lost"]) == (0, count, 0)
        return posts.acknowledged


async def _see_it_full(daemon: Daemon) -> None:
    """Check that the daemon is healthy and not ready, and that the journal is bounded."""
    assert "JOURNAL_FULL" in (await daemon.ready()).text
    metrics = await daemon.metrics()
    assert 23 * _MIB < metrics["payloadd_journal_bytes"] <= 25 * _MIB
    assert metrics["payloadd_queue_bytes"] <= _MIB


async def _until_shrunk(state: Path) -> None:
    """Wait until the files of the journal have shrunk while the daemon runs."""
    with trio.fail_after(60):
        # The files can only be polled.
        while await trio.to_thread.run_sync(_taken, state) > 6 * _MIB:  # noqa: ASYNC110
            await trio.sleep(0.1)


def _taken(state: Path) -> int:
    """Return the bytes of the journal's files and segments."""
    return (state / "journal.db").stat().st_size + space(state)


def _see_all_stored(store: FakeS3, promised: list[bytes]) -> None:
    stored = Counter(store.payloads())
    assert stored.keys() == set(promised)
    assert set(stored.values()) == {1}
    assert set(store.puts.values()) == {1}
