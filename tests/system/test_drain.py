"""Payloads answered with 202 are stored when SIGTERM ends the daemon; with a real S3 server."""

from __future__ import annotations

import hashlib
import signal
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests.support.clients import Posts, make_collections, post, seeded
from tests.support.daemon import running_daemon
from tests.support.loopback import http_client

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.support.s3 import S3Server

pytestmark = pytest.mark.no_cover

BUCKET: Final = "drain"
PAYLOADS: Final = 10_000
CLIENTS: Final = 32
READ_BACK: Final = 200
ANSWERS: Final = {"202", "503 DRAINING", "not connected", "cut off"}
"""Answers that a client may get while the daemon drains."""


async def test_a_sigterm_under_load_loses_nothing(
    seaweed: S3Server, tmp_path: Path, repetition: int
) -> None:
    """A restart of the daemon would lose payloads, or store them twice."""
    rng = seeded(repetition)
    await trio.to_thread.run_sync(seaweed.make_bucket, BUCKET)
    collections = make_collections(PAYLOADS, rng)
    prefix = f"run/{repetition}"
    env = {
        **seaweed.environ,
        "STORE_URL": f"s3://{BUCKET}/{prefix}",
        "DRAIN_TIMEOUT": "5m",
        "BATCH_MAX_PAYLOADS": "1",
    }
    async with running_daemon(tmp_path, env) as daemon:
        posts = Posts(daemon.url)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(posts.run, collections, CLIENTS)
            await posts.wait_until_acknowledged(rng.randrange(1_000, 5_000))
            daemon.signal(signal.SIGTERM)
        line = await daemon.drained(within=300)
    digests = await trio.to_thread.run_sync(_digests, seaweed, f"{prefix}/")
    stored = Counter(digests.values())
    acknowledged = set(_objects_of(posts.acknowledged))

    assert daemon.process.returncode == 0
    assert not acknowledged - stored.keys()
    assert set(stored.values()) == {1}
    assert not stored.keys() - {digest for some in collections for digest in _objects_of(some)}
    assert (line["stored"], line["journaled"], line["lost"]) == (len(digests), 0, 0)
    # Requests cut off without an answer may have been accepted, so there may be more objects.
    assert len(acknowledged) == len(digests) or "cut off" in posts.answers
    sample = dict(rng.sample(sorted(digests.items()), READ_BACK))
    assert await trio.to_thread.run_sync(_read_back, seaweed, sample) == sample
    # Last, so that a loss is reported before an unexpected answer.
    assert set(posts.answers) <= ANSWERS, posts.summary()


async def test_requests_are_accepted_for_drain_delay(tmp_path: Path) -> None:
    """A balancer sends requests until it has seen that the daemon is not ready."""
    async with running_daemon(tmp_path, {"DRAIN_DELAY": "1h"}) as daemon:
        daemon.signal(signal.SIGTERM)
        await daemon.wait_for_event("draining")
        with trio.fail_after(60):
            while (await daemon.ready()).status_code != 503:  # noqa: ASYNC110 - only HTTP shows it
                await trio.sleep(0.05)
        async with http_client() as client:
            answer = await client.post(f"{daemon.url}/v1/payloads", json={"payloads": [1]})
            assert answer.status_code == 202
        await daemon.wait_until_stored(1)
        daemon.signal(signal.SIGTERM)
        line = await daemon.drained()
        assert daemon.events("stopping_at_once")
        assert (line["stored"], line["lost"]) == (1, 0)


async def test_the_drain_begins_after_drain_delay(tmp_path: Path) -> None:
    """A daemon that never ends is killed."""
    async with running_daemon(tmp_path, {"DRAIN_DELAY": "100ms"}) as daemon:
        daemon.signal(signal.SIGTERM)
        assert (await daemon.drained())["lost"] == 0
        assert daemon.event("draining")["delay"] == 0.1
        assert daemon.process.returncode == 0


async def test_requests_during_a_drain_get_503_draining(tmp_path: Path) -> None:
    """A client would get a 400 or 408 because of a restart, and would not retry."""
    async with running_daemon(tmp_path) as daemon:
        posts = Posts(daemon.url)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(posts.run, [[b"%d" % number] for number in range(2_000)], CLIENTS)
            await posts.wait_until_acknowledged(100)
            daemon.signal(signal.SIGTERM)
        assert (await daemon.drained())["stored"] >= len(posts.acknowledged)
    assert set(posts.answers) <= ANSWERS, posts.summary()


async def test_a_drain_that_waits_says_for_what_and_a_second_signal_ends_it(
    tmp_path: Path,
) -> None:
    """An operator would see a daemon that does not stop, and not know why."""
    env = {
        "STORE_URL": "s3://drain",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",  # refuses connections
        "AWS_REGION": "x",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "DRAIN_TIMEOUT": "10m",
    }
    async with running_daemon(tmp_path, env) as daemon:
        await post(daemon.url, [b"1", b"2"])
        await daemon.wait_for_event("store_unavailable")
        daemon.signal(signal.SIGINT)
        line = await daemon.wait_for_event("still_draining")
        assert line["open"] == 2
        assert "ConnectError" in line["waits_for"]["store"]
        daemon.signal(signal.SIGINT)
        assert (await daemon.drained())["journaled"] == 2
        assert daemon.process.returncode == 0
        assert daemon.events("stopping_at_once")


def _objects_of(payloads: Iterable[bytes]) -> list[str]:
    """Return the MD5s of the objects expected for the payloads."""
    return [_md5(payload + b"\n") for payload in payloads]


def _digests(server: S3Server, prefix: str) -> dict[str, str]:
    """Return the MD5 of every object by key, as the server reports it.

    Reading every object would be slow; the caller reads a sample to verify the server's MD5s.
    """
    with closing(server.client()) as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        items = [item for page in pages for item in page.get("Contents", ())]
    return {item["Key"]: item["ETag"].strip('"') for item in items}


def _read_back(server: S3Server, keys: Iterable[str]) -> dict[str, str]:
    """Read objects; returns the MD5 of each by key."""
    with closing(server.client()) as client:
        return {key: _md5(client.get_object(Bucket=BUCKET, Key=key)["Body"].read()) for key in keys}


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
