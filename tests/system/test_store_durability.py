"""DURABILITY=store against a running daemon: nothing is promised before the store has it."""

from __future__ import annotations

import json
import signal
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio

from tests.support.clients import Posts
from tests.support.daemon import Daemon, run_command, running_daemon
from tests.support.loopback import http_client
from tests.support.store import Refusal, fake_s3

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import httpx

    from tests.support.store import Behaviour, FakeS3

_SETTINGS: Final = {
    "DURABILITY": "store",
    "BATCH_LINGER": "50ms",
    "BATCH_MAX_PAYLOADS": "4000",
    "REQUEST_TIMEOUT": "2s",
    "DRAIN_TIMEOUT": "20s",
    "UPLOAD_TIMEOUT": "10m",
    "MAX_QUEUE_BYTES": "1MiB",
    "MAX_LENGTH": "256KiB",
}
_KINDS: Final = ("fast path", "chunked", "http/2")
_ANSWERED_WITHIN: Final = 120.0
"""Seconds: the machine may be slow, but an answer that waits for its upload takes UPLOAD_TIMEOUT.
"""


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _post(url: str, kind: str, body: bytes, **headers: str) -> httpx.Response:
    """Post ``body`` in one of the ways in."""
    fields = {"Content-Type": "application/json"}
    fields |= {name.replace("_", "-"): text for name, text in headers.items()}
    async with http_client(http2=kind == "http/2") as client:
        content: Any = _pieces(body) if kind == "chunked" else body
        with trio.fail_after(_ANSWERED_WITHIN):
            return await client.post(
                f"{url}/v1/payloads", content=content, headers=fields, timeout=None
            )


def _lines_of(store: FakeS3, answer: httpx.Response) -> list[Any]:
    """Return the payloads of the objects that the answer names."""
    assert answer.status_code == 201, answer.text
    bodies = [store.objects[f"/bucket/{key}"] for key in answer.json()["objects"]]
    return [json.loads(line) for body in bodies for line in body.splitlines()]


async def _drain(daemon: Daemon) -> dict[str, Any]:
    daemon.signal(signal.SIGTERM)
    line = await daemon.drained()
    assert daemon.process.returncode == 0
    assert (line["journaled"], line["lost"]) == (0, 0)
    return line


async def test_answers_come_from_the_store_in_every_way_in(tmp_path: Path) -> None:
    """A client would be promised payloads of which no copy is outside of the process."""
    async with fake_s3() as store:
        env = {**store.environ, **_SETTINGS, "STATE_DIR": "/proc/never"}
        async with running_daemon(tmp_path, env) as daemon:
            for number, kind in enumerate(_KINDS):
                one = b"[%d,%d]" % (number, number)
                answer = await _post(daemon.url, kind, one, Idempotency_Key=f"{number}")
                assert _lines_of(store, answer) == [number, number]
                assert answer.json()["accepted"] == 2
                assert "Preference-Applied" not in answer.headers
                again = await _post(
                    daemon.url, kind, one, Idempotency_Key=f"{number}", Prefer="wait=1"
                )
                assert (again.status_code, again.json()) == (201, answer.json())
                other = await _post(daemon.url, kind, b"[]", Idempotency_Key=f"{number}")
                assert (other.status_code, other.json()["code"]) == (422, "KEY_REUSED")
                large = await _post(daemon.url, kind, json.dumps([*range(9000)]).encode())
                assert len(large.json()["objects"]) == 3
                assert _lines_of(store, large) == [*range(9000)]
                empty = await _post(daemon.url, kind, b"[]")
                assert (empty.status_code, empty.json()["objects"]) == (201, [])
            store.begin(Refusal(400, "EntityTooLarge"))
            for kind in _KINDS:
                refused = await _post(daemon.url, kind, b"[9]", Idempotency_Key="refused")
                assert (refused.status_code, refused.json()["code"]) == (502, "STORE_REFUSED")
                assert "Retry-After" not in refused.headers
            await store.end()
            metrics = await daemon.metrics()
            assert metrics["payloadd_payloads_accepted_total"] == 3 * 9002
            assert metrics["payloadd_idempotency_keys"] == 3
            assert metrics["payloadd_journal_jobs"] == metrics["payloadd_journal_bytes"] == 0
            assert "payloadd_journal_free_bytes" not in metrics
            assert (await _drain(daemon))["stored"] == 3 * 9002
        status = await run_command("journal", "status", folder=tmp_path, env=env)
        assert status.returncode == 1
        assert "there is no journal with DURABILITY=store" in status.stderr
        checked = await run_command("check", folder=tmp_path, env=env)
        assert "no journal with DURABILITY=store" in checked.stdout
        assert checked.returncode == 0


async def test_repetitions_join_the_request_that_runs(tmp_path: Path) -> None:
    """A client that times out and repeats its request would store its payloads twice."""
    async with fake_s3("hang") as store:
        env = {**store.environ, **_SETTINGS, "REQUEST_TIMEOUT": "30s", "UPLOAD_TIMEOUT": "1s"}
        async with running_daemon(tmp_path, env) as daemon:
            answers: list[httpx.Response] = []

            async def post(kind: str) -> None:
                answers.append(await _post(daemon.url, kind, b"[1]", Idempotency_Key="k"))

            async with trio.open_nursery() as nursery:
                for kind in (*_KINDS, *_KINDS):
                    nursery.start_soon(post, kind)
                await store.wait_until_asked(1)
                with trio.fail_after(20):
                    while (await daemon.metrics())["payloadd_request_bytes_total"] < 6 * 3:  # noqa: ASYNC110
                        await trio.sleep(0.05)
                assert not answers
                await store.end()
            assert {(one.status_code, one.text) for one in answers} == {(201, answers[0].text)}
            assert store.payloads() == [b"1"]
            await _drain(daemon)


@pytest.mark.parametrize("behaviour", ["down", "hang"])
async def test_an_outage_is_a_503_and_costs_no_memory(tmp_path: Path, behaviour: Behaviour) -> None:
    """Clients would wait without end, and a balancer send them to a daemon that cannot store."""
    async with (
        fake_s3() as store,
        running_daemon(tmp_path, {**store.environ, **_SETTINGS}) as daemon,
    ):
        assert (await _post(daemon.url, "fast path", b"[0]")).status_code == 201
        store.begin(behaviour)
        answers: list[httpx.Response] = []

        async def post(kind: str) -> None:
            answers.append(await _post(daemon.url, kind, b'["%b"]' % (b"x" * 2**15)))

        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(post, _KINDS[number % 3])
        found = {(one.status_code, one.json()["code"]) for one in answers}
        assert {(503, "STORE_UNAVAILABLE")} <= found
        assert not found - {(503, "STORE_UNAVAILABLE"), (503, "QUEUE_FULL")}
        assert min(int(one.headers["Retry-After"]) for one in answers) >= 1
        if behaviour == "down":
            with trio.fail_after(20):
                while (await daemon.ready()).status_code == 200:  # noqa: ASYNC110
                    await trio.sleep(0.1)
            ready = (await daemon.ready()).json()
            assert ready["code"] == "STORE_UNAVAILABLE"
            assert ready["troubles"][0]["code"] == "ConnectError"
            await store.end()
            with trio.fail_after(30):  # without a request
                while (await daemon.ready()).status_code != 200:  # noqa: ASYNC110
                    await trio.sleep(0.1)
        else:
            await store.end()
        # They fill the queue, if those of the outage are gone.
        posts = Posts(daemon.url)
        await posts.run([[b'"%d%b"' % (number, b"y" * 2**15)] for number in range(30)], 30)
        assert posts.answers == {"201": 30}
        assert store.payloads() == sorted([b"0", *posts.acknowledged])
        assert (await _drain(daemon))["stored"] == 31


async def test_a_drain_answers_every_request(tmp_path: Path) -> None:
    """Clients would have no answer when a daemon is restarted."""
    async with fake_s3() as store:
        env = {**store.environ, **_SETTINGS, "BATCH_LINGER": "20s", "REQUEST_TIMEOUT": "30s"}
        async with running_daemon(tmp_path, env) as daemon:
            answers: list[httpx.Response] = []

            async def post(kind: str) -> None:
                answers.append(await _post(daemon.url, kind, b"[1]"))

            async with trio.open_nursery() as nursery:
                for kind in _KINDS:
                    nursery.start_soon(post, kind)
                with trio.fail_after(20):
                    while (await daemon.metrics())["payloadd_queue_bytes"] < 3 * 2:  # noqa: ASYNC110
                        await trio.sleep(0.05)
                line = await _drain(daemon)
            assert [_lines_of(store, one) for one in answers] == [[1, 1, 1]] * 3
            assert line["stored"] == 3


async def test_a_drain_in_an_outage_ends_in_time(tmp_path: Path) -> None:
    """The daemon would be killed in front of its clients."""
    async with fake_s3("hang") as store:
        env = {**store.environ, **_SETTINGS, "REQUEST_TIMEOUT": "10m", "DRAIN_TIMEOUT": "1s"}
        async with running_daemon(tmp_path, env) as daemon, trio.open_nursery() as nursery:
            answers: list[httpx.Response] = []

            async def post(kind: str) -> None:
                answers.append(await _post(daemon.url, kind, b"[1]"))

            for kind in _KINDS:
                nursery.start_soon(partial(post, kind))
            await store.wait_until_asked(1)
            # Long before REQUEST_TIMEOUT: ``drained`` waits for a minute.
            assert (await _drain(daemon))["stored"] == 0
        assert {one.json()["code"] for one in answers} == {"STORE_UNAVAILABLE"}
        assert len(answers) == 3
