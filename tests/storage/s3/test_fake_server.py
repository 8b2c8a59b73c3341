"""The S3 server of the tests does as it is told."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx
import pytest
import trio
import trio.testing

from tests.support.loopback import http_client
from tests.support.store import ACCESS_DENIED, SLOW_DOWN, FakeS3, Refusal, fake_s3
from tests.support.store_behaviours import (
    TAKE,
    All,
    Answer,
    ByMethod,
    ByPrefix,
    Cut,
    Cycle,
    Drip,
    Expired,
    Hang,
    InTurn,
    Locked,
    Rejects,
    Skewed,
    Throttle,
    Wants,
    redirect,
)

if TYPE_CHECKING:
    from tests.support.store import Behaviour


def stamped(ahead: float) -> dict[str, str]:
    """Return the header of a request that is signed by a clock that is ``ahead`` seconds ahead."""
    return {"x-amz-date": time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() + ahead))}


async def statuses(behaviour: Behaviour, *requests: tuple[str, str, dict[str, str]]) -> list[int]:
    """Return the statuses of the answers; 0 for none."""
    found = []
    async with fake_s3(behaviour) as store, http_client() as client:
        for method, path, headers in requests:
            try:
                url = f"{store.url}{path}"
                answer = await client.request(method, url, headers=headers, content=b"x")
            except httpx.TransportError:
                found.append(0)
            else:
                found.append(answer.status_code)
    return found


PUT: tuple[str, str, dict[str, str]] = ("PUT", "/b/k", {})
NO_MD5 = Refusal(400, "InvalidRequest", "Content-MD5 HTTP header is required")


@pytest.mark.parametrize(
    ("behaviour", "requests", "expected"),
    [
        ("take", [("HEAD", "/b/k", {}), PUT, ("HEAD", "/b/k", {})], [404, 200, 200]),
        ("take", [("PUT", "/b/k", {"if-none-match": "*"})] * 2, [200, 412]),
        ("take", [("PUT", "/b/k", {"x-amz-checksum-crc32": "AAAAAA=="})], [400]),
        ("reset", [PUT], [0]),
        (Cut(after=20), [PUT], [0]),
        (Answer(201, b"{}"), [PUT], [201]),
        (redirect(307, "http://127.0.0.1:1/"), [PUT], [307]),
        (InTurn((SLOW_DOWN, TAKE)), [PUT] * 3, [503, 200, 200]),
        (Cycle((SLOW_DOWN, TAKE)), [PUT] * 3, [503, 200, 503]),
        (Throttle(rate=0.01, burst=2), [PUT] * 3, [200, 200, 503]),
        (Skewed(3600), [("PUT", "/b/k", stamped(ahead)) for ahead in (0, 3600)], [403, 200]),
        (
            Expired(frozenset({"OLD"})),
            [("PUT", "/b/k", {"authorization": f"V4 Credential={key}/x"}) for key in ("OLD", "N")],
            [400, 200],
        ),
        (Wants("content-md5", NO_MD5), [PUT], [400]),
        (Rejects("x-amz-", NO_MD5), [PUT, ("PUT", "/b/k", {"x-amz-acl": "1"})], [200, 400]),
        (Locked(), [PUT, PUT], [200, 403]),
        (All((Wants("a", NO_MD5), Locked())), [PUT, ("PUT", "/b/k", {"a": "1"})], [400, 200]),
        (ByPrefix({"/b/k": SLOW_DOWN}), [PUT, ("PUT", "/b/l", {})], [503, 200]),
        (ByMethod({"HEAD": ACCESS_DENIED}), [PUT, ("HEAD", "/b/k", {})], [200, 403]),
    ],
)
async def test_a_behaviour_gives_its_answers(
    behaviour: Behaviour, requests: list[tuple[str, str, dict[str, str]]], expected: list[int]
) -> None:
    """Tests would prove nothing about the answers that they name."""
    assert await statuses(behaviour, *requests) == expected


@pytest.mark.parametrize("behaviour", [Hang(keeps=True), Cut(keeps=True), "black hole"])
async def test_an_answer_can_be_lost(behaviour: Behaviour) -> None:
    """A test of a lost answer would test a refusal."""
    async with fake_s3() as store, http_client() as client:
        store.begin(behaviour)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(1), pytest.raises(httpx.TransportError):
            await client.put(f"{store.url}/b/k", content=b"x", timeout=0.5)
        assert store.objects == ({} if behaviour == "black hole" else {"/b/k": b"x"})
        await store.end()
        await client.put(f"{store.url}/b/k", content=b"y")


async def test_an_object_is_found_with_its_headers() -> None:
    """A test of comparisons would compare nothing."""
    sent = {"x-amz-meta-payloads": "1", "x-amz-checksum-crc32": "jNwWgw=="}
    async with fake_s3() as store, http_client() as client:
        stored = await client.put(f"{store.url}/b/k", content=b"x", headers=sent)
        head = await client.head(f"{store.url}/b/k")
        whole = await client.get(f"{store.url}/b/k", headers={"x-amz-checksum-mode": "ENABLED"})
    assert stored.headers["etag"] == '"9dd4e461268c8034f5c8564e155c67a6"' == head.headers["etag"]
    assert stored.headers["x-amz-checksum-crc32"] == whole.headers["x-amz-checksum-crc32"]
    assert "x-amz-checksum-crc32" not in head.headers
    assert head.headers["x-amz-meta-payloads"] == "1"
    assert head.headers["content-length"] == "1"
    assert whole.content == b"x"
    assert [(one.method, one.status) for one in store.seen] == [
        ("PUT", 200),
        ("HEAD", 200),
        ("GET", 200),
    ]


async def test_answers_drip_and_bodies_pass_a_slow_uplink() -> None:
    """A slow store would be as fast as any other."""
    async with fake_s3(Drip(step=50, pause=0.05), bytes_per_second=1e6) as store:
        start = trio.current_time()
        async with http_client() as client:
            await client.put(f"{store.url}/b/k", content=b"x" * 200_000, timeout=30)
        assert trio.current_time() - start > 0.3


async def test_a_server_can_be_down() -> None:
    """A store that is away would be a store that hangs."""
    async with fake_s3() as store, http_client() as client:
        store.begin("down")
        with pytest.raises(httpx.ConnectError):
            await client.put(f"{store.url}/b/k", content=b"x")
        assert isinstance(store, FakeS3)
        await store.end()
        await client.put(f"{store.url}/b/k", content=b"x")
        assert store.puts["/b/k"] == 1
