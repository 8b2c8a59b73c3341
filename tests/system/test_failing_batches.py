"""Batches that fail hold neither workers nor batches that the store takes."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests.support.clients import Posts, post
from tests.support.daemon import Daemon, running_daemon
from tests.support.store import ACCESS_DENIED, FakeS3, Seen, fake_s3
from tests.support.store_behaviours import Answer, ByPrefix, Cycle, Refusal

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.no_cover

ALONE: Final = {"BATCH_MAX_PAYLOADS": "1"}
TOO_LARGE: Final = Answer(413, b"<html>413 Request Entity Too Large</html>")
GOOD: Final = 1000
_FLOW_WITHIN: Final = 120.0
"""Seconds for ``GOOD`` payloads, which take one or two. They would not end at all if batches that
fail held their workers, and take four minutes at the rate at which these are tried again."""
_RETRIES_PER_SECOND: Final = 4


def good(store: FakeS3) -> int:
    """Return the number of good payloads that are stored."""
    return sum(line.startswith(b'"good') for line in store.payloads())


async def flow(daemon: Daemon, store: FakeS3) -> None:
    """Post good payloads, and check that all are stored while others fail."""
    await post(daemon.url, [b'"good %d"' % number for number in range(GOOD)])
    with trio.fail_after(_FLOW_WITHIN):
        while good(store) < GOOD:  # noqa: ASYNC110 - no event reports the change
            await trio.sleep(0.02)


async def refused(daemon: Daemon) -> float:
    """Return the number of uploads that an operator has to make possible."""
    return (await daemon.metrics())['payloadd_uploads_total{outcome="operator"}']


@pytest.mark.parametrize("durability", ["disk", "memory"])
async def test_objects_that_a_proxy_refuses_do_not_hold_the_workers(
    tmp_path: Path, durability: str
) -> None:
    """64 payloads that a proxy calls too large would stop all uploads."""
    env = {**ALONE, "DURABILITY": durability}
    async with fake_s3(TOO_LARGE) as store:
        async with running_daemon(tmp_path, {**store.environ, **env}) as daemon:
            await post(daemon.url, [b'"bad %d"' % number for number in range(64)])
            with trio.fail_after(_FLOW_WITHIN):
                # Not the first 64 requests: one may be a repetition.
                while len(bad := {one.path for one in store.seen}) < 64:  # noqa: ASYNC110
                    await trio.sleep(0.02)
            store.begin(ByPrefix(dict.fromkeys(bad, TOO_LARGE)))
            await flow(daemon, store)
            assert not daemon.events("store_available")
            began, before, asked = trio.current_time(), await refused(daemon), store.requests
            await trio.sleep(3)
            await store.wait_until_asked(asked + 1)
            retries = await refused(daemon) - before
            assert retries <= _RETRIES_PER_SECOND * (trio.current_time() - began + 1)
            await store.end()
            await daemon.wait_until_stored(GOOD + 64)
            await daemon.wait_for_event("store_available")
            daemon.signal(signal.SIGTERM)
            line = await daemon.drained()
        assert (line["stored"], line["journaled"], line["lost"]) == (GOOD + 64, 0, 0)
        assert set(store.puts.values()) == {1}


async def test_a_forbidden_prefix_does_not_stop_the_others(tmp_path: Path) -> None:
    """A typing error in a policy for one prefix would stop the uploads of all."""
    posted = 2000
    forbidden = {f"/bucket/{number:02x}": ACCESS_DENIED for number in range(0, 256, 8)}
    env = {**ALONE, "KEY_TEMPLATE": "{shard}/{id}", "DRAIN_TIMEOUT": "10m"}
    async with fake_s3(ByPrefix(forbidden)) as store:
        async with running_daemon(tmp_path, {**store.environ, **env}) as daemon:
            await post(daemon.url, [b"%d" % number for number in range(posted)])
            with trio.fail_after(_FLOW_WITHIN):
                while len(store.objects) < 1650:  # noqa: ASYNC110 - no event reports it
                    await trio.sleep(0.05)
            daemon.signal(signal.SIGTERM)
            # The drain does not wait for DRAIN_TIMEOUT.
            line = await daemon.drained(within=200)
        stored = len(store.objects)
        assert (line["stored"], line["journaled"], line["lost"]) == (stored, posted - stored, 0)
        await store.end()
        async with running_daemon(tmp_path, {**store.environ, **env}) as daemon:
            await daemon.wait_until_stored(posted - stored)
        assert set(store.puts.values()) == {1}
        assert store.payloads() == sorted(b"%d" % number for number in range(posted))


@pytest.mark.large
async def test_many_failing_batches_cost_no_memory_and_few_attempts(tmp_path: Path) -> None:
    """The daemon would need memory, and try again, for every object that the store refuses."""
    env = {**ALONE, "KEY_TEMPLATE": "{shard}/{id}"}
    count = 2500
    forbidden = ByPrefix({f"/bucket/{number:x}": ACCESS_DENIED for number in range(15)})
    async with fake_s3(forbidden) as store:
        async with running_daemon(tmp_path, {**store.environ, **env}) as daemon:
            for start in range(0, count, 500):
                await post(daemon.url, [b"%d" % number for number in range(start, start + 500)])
            await store.wait_until_asked(count, within=_FLOW_WITHIN)
            # Repetitions count as requests, so some objects may still come for the first time.
            with trio.fail_after(_FLOW_WITHIN):
                while (await daemon.metrics())["payloadd_queue_jobs"] > 1000:  # noqa: ASYNC110
                    await trio.sleep(0.1)
            asked: list[Seen] = []
            for _ in range(10):
                before, began = len(store.seen), trio.current_time()
                await trio.sleep(3)
                # A refused repetition is followed by a HEAD: the store may have the object.
                asked = [seen for seen in list(store.seen)[before:] if seen.method == "PUT"]
                if len(asked) <= _RETRIES_PER_SECOND * (trio.current_time() - began + 2):
                    break
            else:
                pytest.fail(f"{len(asked)} uploads in 3 s")
            await store.end()
            await daemon.wait_until_stored(count)
        assert set(store.puts.values()) == {1}


async def test_full_memory_is_a_503_and_ends_with_the_failure(tmp_path: Path) -> None:
    """Payloads that wait would take all memory, or be lost after a 202."""
    env = {**ALONE, "DURABILITY": "memory", "MAX_QUEUE": "100"}
    async with fake_s3(ACCESS_DENIED) as store:
        async with running_daemon(tmp_path, {**store.environ, **env}) as daemon:
            posts = Posts(daemon.url)
            await posts.run([[b"%d" % number] for number in range(300)])
            assert posts.answers.keys() == {"202", "503 QUEUE_FULL"}
            assert 100 <= posts.answers["202"] <= 164
            await store.end()
            await daemon.wait_until_stored(posts.answers["202"])
            daemon.signal(signal.SIGTERM)
            assert await daemon.wait() == 0
        assert store.payloads() == sorted(posts.acknowledged)


async def test_a_flood_of_dead_letters_stops(tmp_path: Path) -> None:
    """A setting that makes every object invalid would make a dead letter of every batch."""
    refusal = Refusal(400, "EntityTooLarge")
    async with (
        fake_s3(refusal) as store,
        running_daemon(tmp_path, {**store.environ, **ALONE}) as daemon,
    ):
        await post(daemon.url, [b"%d" % number for number in range(500)])
        line = await daemon.wait_for_event("store_unavailable")
        assert line["code"] == "EntityTooLarge"
        await store.wait_until_asked(500)
        assert (await daemon.metrics())["payloadd_payloads_dead_total"] == 100
        await store.end()
        await daemon.wait_until_stored(400)


@pytest.mark.large
async def test_nine_errors_of_ten_are_one_change_of_state(tmp_path: Path) -> None:
    """The log would have a hundred lines a minute, and the important one would be lost in them."""
    error = Refusal(500, "InternalError")
    async with fake_s3(Cycle((*[error] * 9, "take"))) as store:
        async with running_daemon(tmp_path, {**store.environ, **ALONE}) as daemon:
            for start in range(0, 2000, 100):
                await post(daemon.url, [b"%d" % number for number in range(start, start + 100)])
                await trio.sleep(0.5)
            states = [*daemon.events("store_unavailable"), *daemon.events("store_available")]
            assert len(states) == 1
            await store.end()
            await daemon.wait_until_stored(2000)
            await daemon.wait_for_event("store_available")
        assert store.payloads() == sorted(b"%d" % number for number in range(2000))


async def test_a_store_that_hangs_is_named_within_twenty_seconds(tmp_path: Path) -> None:
    """An operator would wait for minutes for the reason why nothing is stored."""
    async with fake_s3("hang") as store, running_daemon(tmp_path, store.environ) as daemon:
        await post(daemon.url, [b"1"])
        line = await daemon.wait_for_event("store_unavailable", within=20)
        assert line["code"] == "NoAnswer"
        assert "NoAnswer" in (await daemon.ready()).text


async def test_a_black_hole_is_named_within_twenty_seconds(tmp_path: Path) -> None:
    """A firewall that drops packets would look as a healthy store for minutes."""
    async with fake_s3() as store:
        store.begin("black hole")
        async with running_daemon(tmp_path, store.environ) as daemon:
            await post(daemon.url, [b"1"])
            line = await daemon.wait_for_event("store_unavailable", within=20)
            assert line["code"] == "ConnectTimeout"


async def test_large_objects_pass_a_slow_line(tmp_path: Path) -> None:
    """Every attempt would be cut at UPLOAD_TIMEOUT, and the whole object sent again, for ever."""
    env = {"UPLOAD_TIMEOUT": "2s", "MAX_WORKERS": "8", "MAX_LENGTH": "4MiB", **ALONE}
    async with (
        fake_s3(bytes_per_second=2e6) as store,
        running_daemon(tmp_path, {**store.environ, **env}) as daemon,
    ):
        posts = Posts(daemon.url)
        await posts.run([[b'"%d%s"' % (n, b"x" * 2**20)] for n in range(8)])
        assert posts.answers == {"202": 8}
        await daemon.wait_until_stored(8)
        assert store.requests <= 12


@pytest.mark.parametrize("most", ["1", "10"])
async def test_a_crash_keeps_the_batches_that_were_put_back(tmp_path: Path, most: str) -> None:
    """Payloads of failing batches would be lost, or stored twice, after a crash."""
    env = {"BATCH_MAX_PAYLOADS": most, "BATCH_LINGER": "20ms", "MAX_QUEUE": "100"}
    count = 1000
    forbidden = Cycle((*[ACCESS_DENIED] * 3, "take"))
    async with fake_s3(forbidden) as store:
        async with running_daemon(tmp_path, {**store.environ, **env}) as daemon:
            for start in range(0, count, 50):
                await post(daemon.url, [b"%d" % number for number in range(start, start + 50)])
            await store.wait_until_asked(count // int(most))
            daemon.process.kill()
            await daemon.process.wait()
        assert len(store.payloads()) < count
        await store.end()
        async with running_daemon(tmp_path, {**store.environ, **env}) as daemon:
            with trio.fail_after(60):
                while len(set(store.payloads())) < count:  # noqa: ASYNC110 - no event reports it
                    await trio.sleep(0.05)
            daemon.signal(signal.SIGTERM)
            line = await daemon.drained()
        assert (line["journaled"], line["lost"]) == (0, 0)
        assert store.payloads() == sorted(b"%d" % number for number in range(count))
