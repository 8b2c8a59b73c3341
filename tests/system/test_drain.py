"""The promise of the daemon, against a real S3 server: what was answered with 202 is there."""

from __future__ import annotations

import hashlib
import signal
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Final

import trio

from tests.support.clients import Posts, make_collections, seeded
from tests.support.daemon import running_daemon

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tests.support.s3 import S3Server

BUCKET: Final = "drain"
PAYLOADS: Final = 10_000
CLIENTS: Final = 32
READ_BACK: Final = 200
ANSWERS: Final = {"202", "503 DRAINING", "not connected", "cut off"}
"""What a client may meet while the daemon drains."""


async def test_a_sigterm_under_load_loses_nothing(
    seaweed: S3Server, tmp_path: Path, repetition: int
) -> None:
    """A user would lose payloads, or find them twice, whenever the daemon is restarted."""
    rng = seeded(repetition)
    await trio.to_thread.run_sync(seaweed.make_bucket, BUCKET)
    collections = make_collections(PAYLOADS, rng)
    prefix = f"run/{repetition}"
    env = {**seaweed.environ, "STORE_URL": f"s3://{BUCKET}/{prefix}", "DRAIN_TIMEOUT": "5m"}
    async with running_daemon(tmp_path, env) as daemon:
        posts = Posts(daemon.url)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(posts.run, collections, CLIENTS)
            await posts.wait_until_acknowledged(rng.randrange(1_000, 6_000))
            daemon.signal(signal.SIGTERM)
        line = await daemon.drained(within=300)
    digests = await trio.to_thread.run_sync(_digests, seaweed, f"{prefix}/")
    stored = Counter(digests.values())
    acknowledged = set(_objects_of(posts.acknowledged))

    assert daemon.process.returncode == 0
    assert set(posts.answers) <= ANSWERS, [answer.text for answer in posts.refusals]
    assert not acknowledged - stored.keys()
    assert set(stored.values()) == {1}
    assert not stored.keys() - {digest for some in collections for digest in _objects_of(some)}
    assert (line["stored"], line["journaled"], line["lost"]) == (len(digests), 0, 0)
    # A request that was cut off without an answer may have been taken: at least once.
    assert len(acknowledged) == len(digests) or "cut off" in posts.answers
    sample = dict(rng.sample(sorted(digests.items()), READ_BACK))
    assert await trio.to_thread.run_sync(_read_back, seaweed, sample) == sample


async def test_requests_that_meet_a_sigterm_are_told_so(tmp_path: Path) -> None:
    """A client would be blamed for a restart (400, 408), and give its payloads up."""
    async with running_daemon(tmp_path) as daemon:
        posts = Posts(daemon.url)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(posts.run, [[b"%d" % number] for number in range(2_000)], CLIENTS)
            await posts.wait_until_acknowledged(100)
            daemon.signal(signal.SIGTERM)
        assert (await daemon.drained())["stored"] >= len(posts.acknowledged)
    assert set(posts.answers) <= ANSWERS, [answer.text for answer in posts.refusals]


def _objects_of(payloads: Iterable[bytes]) -> list[str]:
    """Return the MD5s of the objects that should be there for the payloads."""
    return [_md5(payload + b"\n") for payload in payloads]


def _digests(server: S3Server, prefix: str) -> dict[str, str]:
    """Return what the server says the MD5 of every object is, by key.

    That is byte for byte, and 4 ms an object faster than to read them all; whether the server
    tells the truth is seen on a sample.
    """
    with closing(server.client()) as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        items = [item for page in pages for item in page.get("Contents", ())]
    return {item["Key"]: item["ETag"].strip('"') for item in items}


def _read_back(server: S3Server, keys: Iterable[str]) -> dict[str, str]:
    """Return the MD5 of every object as it is read."""
    with closing(server.client()) as client:
        return {key: _md5(client.get_object(Bucket=BUCKET, Key=key)["Body"].read()) for key in keys}


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
