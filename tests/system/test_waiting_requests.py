"""Requests that wait for their upload, and envelopes, against a running daemon, both ways in."""

from __future__ import annotations

import json
import signal
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio

from tests.support.daemon import running_daemon
from tests.support.loopback import http_client
from tests.support.store import fake_s3

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import httpx

pytestmark = pytest.mark.no_cover

_LARGE: Final = json.dumps([*range(9000)]).encode()
_WAIT: Final = {"Prefer": "wait=25"}


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _post(url: str, body: bytes, *, chunked: bool, **headers: str) -> httpx.Response:
    fields = {"Content-Type": "application/json", **_WAIT}
    fields |= {name.replace("_", "-"): text for name, text in headers.items()}
    async with http_client() as client:
        content = _pieces(body) if chunked else body
        return await client.post(f"{url}/v1/payloads", content=content, headers=fields, timeout=40)


def _lines_of(folder: Path, answer: httpx.Response) -> list[Any]:
    """Return the lines of the objects that the answer names."""
    assert answer.status_code == 201, answer.text
    assert answer.headers["Preference-Applied"] == "wait=25"
    return [
        json.loads(line)
        for key in answer.json()["objects"]
        for line in (folder / "objects" / key).read_bytes().splitlines()
    ]


@pytest.mark.parametrize("durability", ["disk", "memory"])
@pytest.mark.parametrize("chunked", [False, True], ids=["fast-path", "hypercorn"])
async def test_the_keys_in_the_answer_are_those_of_the_objects(
    tmp_path: Path, durability: str, *, chunked: bool
) -> None:
    """A client would look for its payloads in other objects than they are in."""
    env = {
        "STORE_URL": f"file://{tmp_path}/objects",
        "BATCH_MAX_PAYLOADS": "4000",
        "BATCH_LINGER": "50ms",
        "DURABILITY": durability,
        "ENVELOPE": "received_at,client,name,stream,headers:x-*",
    }
    async with running_daemon(tmp_path, env) as daemon:
        answer = await _post(
            daemon.url, b"[1,2]", chunked=chunked, X_Event="a", Idempotency_Key="k"
        )
        found = _lines_of(tmp_path, answer)
        assert [line["payload"] for line in found] == [1, 2]
        assert (found[0]["client"], found[0]["headers"]) == ("127.0.0.1", {"x-event": "a"})
        # Received at another time: the first answer again.
        again = await _post(daemon.url, b"[1,2]", chunked=chunked, Idempotency_Key="k")
        assert (again.status_code, again.json()) == (201, answer.json())
        large = await _post(daemon.url, _LARGE, chunked=chunked)
        assert len(large.json()["objects"]) == 3
        assert [line["payload"] for line in _lines_of(tmp_path, large)] == [*range(9000)]


async def test_a_drain_stores_the_batches_that_requests_wait_for(tmp_path: Path) -> None:
    """Clients would wait for batches that linger, and the daemon for the clients."""
    env = {
        "STORE_URL": f"file://{tmp_path}/objects",
        "BATCH_MAX_PAYLOADS": "1000",
        "BATCH_LINGER": "10m",
    }
    async with running_daemon(tmp_path, env) as daemon:
        answers: list[httpx.Response] = []

        async def post(chunked: bool) -> None:  # noqa: FBT001 - of start_soon
            answers.append(await _post(daemon.url, b"[1]", chunked=chunked))

        async with trio.open_nursery() as nursery:
            for chunked in (False, True):
                nursery.start_soon(post, chunked)
            with trio.fail_after(60):
                while (await daemon.metrics())["payloadd_payloads_accepted_total"] < 2:  # noqa: ASYNC110
                    await trio.sleep(0.05)
            began = trio.current_time()
            daemon.signal(signal.SIGTERM)
        assert trio.current_time() - began < 20
        assert [line for answer in answers for line in _lines_of(tmp_path, answer)] == [1, 1, 1, 1]
        line = await daemon.drained()
        assert (line["stored"], line["journaled"]) == (2, 0)


async def test_the_timeout_of_a_drain_counts_from_its_beginning(tmp_path: Path) -> None:
    """With a request that waits, a drain would take DRAIN_TIMEOUT twice, and be killed."""
    async with fake_s3() as store:
        store.begin("hang")
        env = {**store.environ, "BATCH_LINGER": "10ms", "DRAIN_TIMEOUT": "5s"}
        async with running_daemon(tmp_path, env) as daemon, trio.open_nursery() as nursery:
            nursery.start_soon(partial(_post, daemon.url, b"[1]", chunked=False))
            with trio.fail_after(60):
                while not store.requests:  # noqa: ASYNC110
                    await trio.sleep(0.05)
            daemon.signal(signal.SIGTERM)
            line = await daemon.drained()
            assert line["journaled"] == 1
            began, ended = (
                datetime.fromisoformat(one["timestamp"]) for one in (daemon.event("draining"), line)
            )
            assert 4 < (ended - began).total_seconds() < 9
