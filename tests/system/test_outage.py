"""Outages of the store: acknowledged payloads are stored after each of them."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests.support.clients import Posts, make_collections, post, seeded
from tests.support.daemon import Daemon, running_daemon
from tests.support.store import (
    ACCESS_DENIED,
    INTERNAL_ERROR,
    SLOW_DOWN,
    Behaviour,
    FakeS3,
    fake_s3,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.s3 import S3Server

pytestmark = pytest.mark.no_cover

PAYLOADS: Final = 300


async def _through_an_outage(daemon: Daemon, posts: Posts, outage: float, code: str | None) -> None:
    """Post during an outage, and check that the log and /readyz report it."""
    await posts.run(make_collections(PAYLOADS, seeded(2)), 8)
    assert set(posts.answers) == {"202"}
    line = await daemon.wait_for_event("store_unavailable")
    assert line["level"] in {"warning", "error"}
    assert code is None or line["code"] == code, line
    await trio.sleep(outage)
    ready = await daemon.ready()
    assert ready.status_code == 200
    assert line["code"] in ready.text
    assert not daemon.events("store_available")


async def _after_it(daemon: Daemon, posts: Posts) -> None:
    """Check that all payloads are stored, none is a dead letter, and the drain counts them."""
    await daemon.wait_for_event("store_available", within=60)
    await daemon.wait_until_stored(PAYLOADS, within=120)
    assert (await daemon.metrics())["payloadd_payloads_dead_total"] == 0
    ready = await daemon.ready()
    assert ready.status_code == 200
    daemon.signal(signal.SIGTERM)
    line = await daemon.drained()
    assert daemon.process.returncode == 0
    assert (line["stored"], line["journaled"], line["lost"]) == (PAYLOADS, 0, 0)
    assert len(posts.acknowledged) == PAYLOADS


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        pytest.param(SLOW_DOWN, "SlowDown", id="slow-down"),
        pytest.param(INTERNAL_ERROR, "InternalError", id="500"),
        pytest.param("reset", None, id="resets"),
        pytest.param("take and reset", None, id="resets-after-storing"),
        pytest.param("hang", "UploadTimeout", id="hangs"),
        pytest.param("down", "ConnectError", id="refuses-connections"),
    ],
)
async def test_an_outage_loses_nothing(
    tmp_path: Path, behaviour: Behaviour, code: str | None
) -> None:
    """Acknowledged payloads would be lost in an outage of the store."""
    await _lose_nothing(tmp_path, behaviour, code, outage=0.5)


async def test_missing_permissions_lose_nothing(tmp_path: Path, outage: float) -> None:
    """A mistake in a bucket's policy would lose all payloads until it is fixed."""
    await _lose_nothing(tmp_path, ACCESS_DENIED, "AccessDenied", outage)


async def _lose_nothing(
    folder: Path, behaviour: Behaviour, code: str | None, outage: float
) -> None:
    async with fake_s3() as store:
        env = {**store.environ, "UPLOAD_TIMEOUT": "500ms", "MAX_WORKERS": "16"}
        async with running_daemon(folder, env) as daemon:
            posts = Posts(daemon.url)
            store.begin(behaviour)
            await _through_an_outage(daemon, posts, outage, code)
            await store.end()
            await _after_it(daemon, posts)
        assert store.payloads() == sorted(posts.acknowledged)


async def test_a_restart_of_a_real_server_loses_nothing(
    seaweed: S3Server, tmp_path: Path, outage: float
) -> None:
    """A restart of the S3 server would lose payloads."""
    bucket = await trio.to_thread.run_sync(seaweed.make_bucket, "outage")
    assert seaweed.process is not None
    env = {**seaweed.environ, "STORE_URL": f"s3://{bucket}", "UPLOAD_TIMEOUT": "1s"}
    async with running_daemon(tmp_path, env) as daemon:
        posts = Posts(daemon.url)
        seaweed.process.pause()
        try:
            await _through_an_outage(daemon, posts, outage, "UploadTimeout")
        finally:
            seaweed.process.resume()
        await _after_it(daemon, posts)
    objects = await trio.to_thread.run_sync(seaweed.objects, bucket)
    stored = b"".join(objects.values()).splitlines(keepends=True)
    assert sorted(stored) == sorted(payload + b"\n" for payload in posts.acknowledged)


SMALL: Final = {
    "DURABILITY": "memory",
    "MAX_WORKERS": "4",
    "MAX_QUEUE_BYTES": "1MiB",
    "MAX_LENGTH": "64KiB",
    "UPLOAD_TIMEOUT": "500ms",
}


def _big_collections(count: int, start: int) -> list[list[bytes]]:
    """Return collections of one payload of 32 KiB; all payloads differ."""
    return [[b'"%08d%s"' % (start + index, b"x" * 2**15)] for index in range(count)]


async def test_a_full_queue_bounds_memory(tmp_path: Path) -> None:
    """During an outage the daemon would use all memory, or lose payloads after a 202."""
    async with (
        fake_s3("hang") as store,
        running_daemon(tmp_path, {**store.environ, **SMALL}) as daemon,
    ):
        posts = Posts(daemon.url)
        await posts.run(_big_collections(100, 0), 16)
        full = daemon.peak_rss()
        await posts.run(_big_collections(400, 100), 16)
        assert set(posts.answers) == {"202", "503 QUEUE_FULL"}
        assert daemon.peak_rss() - full < 8 * 2**20
        await store.end()
        await daemon.wait_until_stored(len(posts.acknowledged))
        daemon.signal(signal.SIGTERM)
        assert await daemon.wait() == 0
        assert store.payloads() == sorted(posts.acknowledged)


async def test_a_full_queue_is_503_queue_full_and_not_ready(tmp_path: Path) -> None:
    """Clients and load balancers would not know that and when to retry."""
    small = {"MAX_WORKERS": "1", "MAX_QUEUE": "10", "UPLOAD_TIMEOUT": "500ms"}
    env = {"DURABILITY": "memory", "BATCH_MAX_PAYLOADS": "1", **small}
    async with (
        fake_s3("hang") as store,
        running_daemon(tmp_path, {**store.environ, **env}) as daemon,
    ):
        posts = Posts(daemon.url)
        await posts.run([[b"%d" % number] for number in range(30)])
        # One in the worker and ten in the queue.
        assert posts.answers == {"202": 11, "503 QUEUE_FULL": 19}
        for answer in posts.refusals:
            assert answer.headers["Content-Type"] == "application/problem+json"
            assert int(answer.headers["Retry-After"]) >= 1
        metrics = await daemon.metrics()
        assert (metrics["payloadd_queue_jobs"], metrics["payloadd_workers_busy"]) == (10, 1)
        assert metrics["payloadd_queue_bytes"] > 0
        not_ready = await daemon.ready()
        assert not_ready.status_code == 503
        assert "QUEUE_FULL" in not_ready.text
        await store.end()
        await daemon.wait_until_stored(11)
        assert (await daemon.ready()).status_code == 200


async def _some_stored(daemon: Daemon, store: FakeS3) -> None:
    """Post 25 payloads, of which the store confirms 10."""
    await post(daemon.url, [b'"stored %d"' % number for number in range(10)])
    await daemon.wait_until_stored(10)
    store.begin("hang")
    await post(daemon.url, [b'"stuck %d"' % number for number in range(15)])


async def test_a_drain_past_its_deadline_reports_lost_payloads(tmp_path: Path) -> None:
    """An operator would not know that a restart lost payloads, and how many."""
    async with fake_s3() as store:
        env = {**store.environ, "DRAIN_TIMEOUT": "1s", "DURABILITY": "memory"}
        async with running_daemon(tmp_path, env) as daemon:
            await _some_stored(daemon, store)
            daemon.signal(signal.SIGTERM)
            line = await daemon.drained(within=60)
        assert daemon.process.returncode == 75
        assert (line["stored"], line["journaled"], line["lost"]) == (10, 0, 15)
        assert len(store.payloads()) == 10


async def test_the_next_start_uploads_the_rest_of_a_drain(tmp_path: Path) -> None:
    """A restart during an outage would lose payloads, or store them twice."""
    async with fake_s3() as store:
        env = {**store.environ, "DRAIN_TIMEOUT": "1s"}
        async with running_daemon(tmp_path, env) as daemon:
            await _some_stored(daemon, store)
            daemon.signal(signal.SIGTERM)
            line = await daemon.drained(within=60)
        assert daemon.process.returncode == 0
        assert (line["stored"], line["journaled"], line["lost"]) == (10, 15, 0)
        await store.end()
        async with running_daemon(tmp_path, env) as daemon:
            await daemon.wait_until_stored(15)
            daemon.signal(signal.SIGTERM)
            line = await daemon.drained()
        assert (line["stored"], line["journaled"], line["lost"]) == (15, 0, 0)
        assert len(store.payloads()) == 25
        assert set(store.puts.values()) == {1}


async def test_a_drain_waits_for_the_end_of_a_short_outage(tmp_path: Path) -> None:
    """A short outage during a restart would leave payloads although DRAIN_TIMEOUT is longer."""
    async with fake_s3() as store:
        env = {**store.environ, "DRAIN_TIMEOUT": "5m", "UPLOAD_TIMEOUT": "500ms"}
        async with running_daemon(tmp_path, env) as daemon:
            await _some_stored(daemon, store)
            daemon.signal(signal.SIGTERM)
            await daemon.wait_for_event("draining")
            await store.end()
            line = await daemon.drained(within=60)
        assert daemon.process.returncode == 0
        assert (line["stored"], line["lost"]) == (25, 0)
        assert len(store.payloads()) == 25
