"""The life of the service: started, misconfigured, killed, hung."""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests.support.clients import Posts, post
from tests.system.systemd.stopped_thread import stopped_thread
from tests.system.systemd.unit import configured

if TYPE_CHECKING:
    from tests.support.s3 import S3Server
    from tests.system.systemd.machine import Machine
    from tests.system.systemd.unit import Unit

WATCHDOG: Final = 4.0
"""Seconds of the watchdog's period in these tests."""
RESTART: Final = 20.0
"""Seconds that may pass beyond that until another process runs, on a busy machine."""


async def test_start_returns_when_posts_are_taken(machine: Machine) -> None:
    """A unit that is ordered after payloadd would be refused its first POST."""
    async with configured(machine) as unit:
        await unit.systemctl("start")
        await post(unit.url, [b"1"])
        assert await unit.show("StatusText") == "serving"


async def test_a_wrong_setting_is_shown(machine: Machine) -> None:
    """An administrator would have to search the log for what is wrong, or see it restart forever."""
    async with configured(machine, {"MAX_WORKERS": "many", "DRAIN_TIMEOUT": "soon"}) as unit:
        status, _ = await machine.attempt("systemctl", "start", unit.name)
        assert status != 0
        _, shown = await machine.attempt("systemctl", "status", "--no-pager", "--full", unit.name)
        assert "MAX_WORKERS: 'many' is not allowed" in shown
        assert "DRAIN_TIMEOUT: 'soon' is not allowed" in shown
        assert await unit.show("StatusText") != ""
        assert await unit.show("ExecMainStatus") == "78"
        assert await unit.show("NRestarts") == "0"
        assert {entry["PRIORITY"] for entry in await unit.entries()} == {"3"}


async def test_a_killed_daemon_comes_back_and_loses_nothing(
    machine: Machine, seaweed: S3Server
) -> None:
    """What was acknowledged would be lost with the process, or wait for a human."""
    bucket = await trio.to_thread.run_sync(seaweed.make_bucket, "killed")
    payloads = [b"%d" % number for number in range(500)]
    env = {**seaweed.environ, "STORE_URL": f"s3://{bucket}", "MAX_WORKERS": "1"}
    async with configured(machine, env) as unit:
        await unit.systemctl("start")
        posts = Posts(unit.url)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(posts.run, [[payload] for payload in payloads], 8)
            await posts.wait_until_acknowledged(200)
            await machine.run("systemctl", "kill", "--signal=KILL", unit.name)
        await unit.wait_until("NRestarts", "1")
        await unit.wait_until("ActiveState", "active")
        assert posts.acknowledged
        await _stored(seaweed, bucket, posts.acknowledged)
        replayed = await trio.to_thread.run_sync(seaweed.objects, bucket)
        lines = [line for body in replayed.values() for line in body.splitlines()]
        assert len(lines) == len(set(lines))


async def test_a_stopped_process_is_ended_and_started_again(machine: Machine) -> None:
    """A daemon whose event loop hangs would stay as it is until somebody complains."""
    async with configured(machine, service=f"WatchdogSec={WATCHDOG:g}") as unit:
        await unit.systemctl("start")
        await post(unit.url, [b"1"])
        await machine.run("systemctl", "kill", "--signal=STOP", unit.name)
        await _ended_by_the_watchdog(unit)
        await post(unit.url, [b"2"])


async def test_a_hanging_journal_is_ended_and_started_again(machine: Machine) -> None:
    """A bare timer would go on saying that all is well, while no POST is ever answered."""
    async with configured(machine, service=f"WatchdogSec={WATCHDOG:g}") as unit:
        await unit.systemctl("start")
        await post(unit.url, [b"1"])
        async with stopped_thread(machine, await unit.pid(), "journal"):
            assert (await _healthz(unit)) == 200  # the event loop goes on
            await _ended_by_the_watchdog(unit)
        await post(unit.url, [b"2"])


async def test_a_quiet_daemon_is_left_alone(machine: Machine) -> None:
    """A daemon with nothing to do, or with a store that is down, would be ended again and again."""
    env = {"STORE_URL": "s3://nowhere", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", **_KEYS}
    async with configured(machine, env, service="WatchdogSec=1") as unit:
        await unit.systemctl("start")
        await trio.sleep(2)
        await post(unit.url, [b"1"])
        await trio.sleep(2)
        assert await unit.show("NRestarts") == "0"
        status = await unit.show("StatusText")
        assert status.startswith("serving: 0 payloads stored, 0 jobs queued, 1 jobs journaled;")
        assert "waiting for the store: " in status
        await unit.systemctl("stop")


_KEYS: Final = {
    "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
}
