"""Streams of a running daemon: their objects, counters, tokens and log lines."""

from __future__ import annotations

import re
import signal
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import post
from tests.support.daemon import run_command, running_daemon
from tests.support.loopback import http_client
from tests.support.store import Refusal, fake_s3
from tests.system.test_tokens import new_token

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemon import Daemon

NAMES = ("default", "clicks", "errors")
FOLDER = re.compile(r"(\w+)/dt=\d{4}-\d\d-\d\d/hour=\d\d/[0-9a-f-]{36}\.ndjson")


async def post_to(daemon: Daemon, stream: str, body: bytes, **headers: str) -> int:
    """Return the status of a POST of NDJSON to a stream."""
    async with http_client() as client:
        answer = await client.post(
            f"{daemon.url}/v1/payloads/{stream}",
            content=body,
            headers={"Content-Type": "application/x-ndjson", **headers},
        )
    return answer.status_code


def stored(folder: Path) -> dict[str, Counter[bytes]]:
    """Return the stored payloads by the folder of their stream."""
    found: dict[str, Counter[bytes]] = {}
    root = folder / "payloadd-data" / "objects"
    for path in root.rglob("*.ndjson"):
        match = FOLDER.fullmatch(path.relative_to(root).as_posix())
        assert match is not None, path
        found.setdefault(match[1], Counter()).update(path.read_bytes().splitlines())
    return found


@pytest.mark.parametrize("durability", ["disk", "memory"])
async def test_streams_have_objects_and_counters_of_their_own(
    tmp_path: Path, durability: str
) -> None:
    """Payloads would be mixed, or the operator of one stream see the figures of another."""
    env = {"STREAMS": "clicks,errors", "BATCH_LINGER": "50ms", "DURABILITY": durability}
    async with running_daemon(tmp_path, env) as daemon:
        assert daemon.event("listening")["streams"] == ["default", "clicks", "errors"]
        for number in range(3):
            for size, name in enumerate(NAMES, start=1):
                body = b"".join(b'"%s %d %d"\n' % (name.encode(), number, i) for i in range(size))
                # The same key in several streams: several requests.
                for _ in range(2):
                    key = {"Idempotency-Key": f"offset-{number}"}
                    assert await post_to(daemon, name, body, **key) == 202
        assert await post_to(daemon, "another", b"1\n") == 404
        metrics = await daemon.metrics()
        for size, name in enumerate(NAMES, start=1):
            assert metrics[f'payloadd_payloads_accepted_total{{stream="{name}"}}'] == 3 * size
        daemon.signal(signal.SIGTERM)
        assert (await daemon.drained())["stored"] == 18
    found = stored(tmp_path)
    assert set(found) == set(NAMES)
    for size, name in enumerate(NAMES, start=1):
        assert found[name].total() == len(found[name]) == 3 * size
        assert all(line.startswith(b'"%s ' % name.encode()) for line in found[name])


async def test_a_stream_that_leaves_the_settings_is_drained(tmp_path: Path) -> None:
    """Its payloads would wait in the journal for ever, or be stored under another name."""
    (tmp_path / "tokens").write_text("")
    _, line = await new_token(tmp_path, "shop", "--streams", "clicks")
    (tmp_path / "tokens").write_text(line + "\n")
    async with fake_s3("down") as store:
        env = {**store.environ, "STREAMS": "clicks", "DRAIN_TIMEOUT": "0s"}
        async with running_daemon(tmp_path, env) as daemon:
            assert await post_to(daemon, "clicks", b'"left"\n') == 202
            daemon.signal(signal.SIGTERM)
            assert (await daemon.drained())["journaled"] == 1
        await store.end()
        env = {**store.environ, "AUTH_TOKENS": "tokens", "DRAIN_TIMEOUT": "60s"}
        async with running_daemon(tmp_path, env) as daemon:
            warning = daemon.event("tokens_of_unknown_streams")
            assert (warning["clients"], warning["streams"]) == (["shop"], ["clicks"])
            await daemon.wait_until_stored(1)
            daemon.signal(signal.SIGTERM)
            await daemon.drained()
        (path,) = store.objects
        assert path.startswith("/bucket/clicks/dt=")


async def test_dead_payloads_are_logged_with_their_stream(tmp_path: Path) -> None:
    """An operator would not know which team to tell."""
    async with fake_s3(Refusal(400, "EntityTooLarge")) as store:
        env = {**store.environ, "STREAMS": "clicks", "BATCH_LINGER": "0s"}
        async with running_daemon(tmp_path, env) as daemon:
            assert await post_to(daemon, "clicks", b"1\n2\n") == 202
            line = await daemon.wait_for_event("payloads_dead")
            assert (line["stream"], line["payloads"]) == ("clicks", 2)
            metrics = await daemon.metrics()
            assert metrics['payloadd_payloads_dead_total{stream="clicks"}'] == 2
            assert metrics['payloadd_payloads_dead_total{stream="default"}'] == 0


async def test_a_daemon_without_streams_names_none(tmp_path: Path) -> None:
    """Dashboards of a daemon without streams would lose their series."""
    async with running_daemon(tmp_path, {"BATCH_LINGER": "0s"}) as daemon:
        await post(daemon.url, [b"1"])
        await daemon.wait_until_stored(1)
        assert daemon.event("listening")["streams"] == ["default"]


async def test_wrong_names_of_streams_refuse_the_start(tmp_path: Path) -> None:
    """A daemon would start with a stream to which no client can post."""
    for command in ("serve", "check"):
        env = {"STREAMS": "Clicks", "KEY_TEMPLATE": "{date}/{id}"}
        done = await run_command(command, folder=tmp_path, env=env)
        assert done.returncode == 78
        assert "STREAMS: 'Clicks' is not allowed; allowed is names" in done.stderr
        env["STREAMS"] = "clicks"
        done = await run_command(command, folder=tmp_path, env=env)
        assert done.returncode == 78
        assert "KEY_TEMPLATE: '{date}/{id}' is not allowed with STREAMS" in done.stderr
