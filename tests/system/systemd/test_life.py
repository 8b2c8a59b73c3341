"""The service is started, misconfigured, reloaded, killed, and hung."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests.support.clients import Posts, post
from tests.system.systemd.threads import stopped_threads
from tests.system.systemd.unit import DEADLINE, configured, status_of

if TYPE_CHECKING:
    from tests.support.s3 import S3Server
    from tests.system.systemd.machine import Machine
    from tests.system.systemd.unit import Unit

pytestmark = pytest.mark.no_cover

WATCHDOG: Final = 4.0
"""WatchdogSec= in these tests."""
RESTART: Final = 20.0
"""Seconds for the restart after the watchdog's timeout, on a busy machine."""

_KEYS: Final = {
    "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
}


async def test_start_returns_when_posts_are_accepted(machine: Machine) -> None:
    """The first POST of a unit that starts after payloadd would be refused."""
    async with configured(machine) as unit:
        await unit.systemctl("start")
        await post(unit.url, [b"1"])
        assert await unit.show("StatusText") == "serving"


async def test_a_large_body_is_decoded_in_the_sandbox(machine: Machine) -> None:
    """The sandbox would forbid the process that decodes large bodies."""
    async with configured(machine) as unit:
        await unit.systemctl("start")
        await post(unit.url, [b'"%s"' % (b"x" * 200)] * 5000)
        assert "body_process_failed" not in [line["event"] for line in await unit.events()]


async def test_a_wrong_setting_is_in_the_status_and_causes_no_restart(machine: Machine) -> None:
    """An administrator would have to search for the problem, or the unit would restart for ever."""
    async with configured(machine, {"MAX_WORKERS": "many", "DRAIN_TIMEOUT": "soon"}) as unit:
        status, _ = await machine.attempt("systemctl", "start", unit.name)
        assert status != 0
        await machine.run("journalctl", "--sync")
        _, shown = await machine.attempt("systemctl", "status", "--no-pager", "--full", unit.name)
        assert "MAX_WORKERS: 'many' is not allowed" in shown
        assert "DRAIN_TIMEOUT: 'soon' is not allowed" in shown
        assert await unit.show("StatusText") != ""
        assert await unit.show("ExecMainStatus") == "78"
        assert await unit.show("NRestarts") == "0"
        entries = await unit.entries()
        assert {entry["PRIORITY"] for entry in entries} == {"3"}
        named = {entry["PAYLOADD_SETTING"] for entry in entries}
        assert named == {"MAX_WORKERS", "DRAIN_TIMEOUT"}


async def test_a_reload_keeps_the_process(machine: Machine) -> None:
    """A renewed certificate would need a restart, or `systemctl reload` would end the service."""
    async with configured(machine) as unit:
        await unit.systemctl("start")
        process = await unit.pid()
        await unit.systemctl("reload")
        await post(unit.url, [b"1"])
        assert await unit.pid() == process
        assert "reload" in [line["event"] for line in await unit.events()]


async def test_a_killed_daemon_is_restarted_and_loses_nothing(
    machine: Machine, seaweed: S3Server
) -> None:
    """Acknowledged payloads would be lost with the process, or wait for an operator."""
    bucket = await trio.to_thread.run_sync(seaweed.make_bucket, "killed")
    payloads = [b"%d" % number for number in range(200)]
    env = {**seaweed.environ, "STORE_URL": f"s3://{bucket}", "MAX_WORKERS": "1"}
    async with configured(machine, env) as unit:
        await unit.systemctl("start")
        posts = Posts(unit.url)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(posts.run, [[payload] for payload in payloads], 8)
            await posts.wait_until_acknowledged(100)
            await machine.run("systemctl", "kill", "--signal=KILL", unit.name)
        await unit.wait_until("NRestarts", "1")
        await unit.wait_until("ActiveState", "active")
        assert posts.acknowledged
        await _stored(seaweed, bucket, posts.acknowledged)
        replayed = await trio.to_thread.run_sync(seaweed.objects, bucket)
        lines = [line for body in replayed.values() for line in body.splitlines()]
        assert len(lines) == len(set(lines))


async def test_a_process_without_progress_is_restarted(machine: Machine) -> None:
    """A daemon whose event loop hangs would hang until an operator restarts it."""
    async with configured(machine, service=f"WatchdogSec={WATCHDOG:g}") as unit:
        await unit.systemctl("start")
        await post(unit.url, [b"1"])
        await machine.run("systemctl", "kill", "--signal=STOP", unit.name)
        await _restarted_by_the_watchdog(unit)
        await post(unit.url, [b"2"])


async def test_a_daemon_with_a_hanging_journal_is_restarted(machine: Machine) -> None:
    """The watchdog would be fed while no POST is answered."""
    async with configured(machine, service=f"WatchdogSec={WATCHDOG:g}") as unit:
        await unit.systemctl("start")
        await post(unit.url, [b"1"])
        async with stopped_threads(machine, await unit.pid()):
            assert await status_of(unit.url, "/healthz") == 200  # the event loop still runs
            await _restarted_by_the_watchdog(unit)
        await post(unit.url, [b"2"])


async def test_an_idle_daemon_is_not_restarted(machine: Machine) -> None:
    """An idle daemon, or one whose store is down, would be restarted again and again."""
    env = {"STORE_URL": "s3://nowhere", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", **_KEYS}
    async with configured(machine, env, service="WatchdogSec=2") as unit:
        await unit.systemctl("start")
        await trio.sleep(3)
        await post(unit.url, [b"1"])
        await trio.sleep(3)
        assert await unit.show("NRestarts") == "0"
        status = await unit.show("StatusText")
        assert status.startswith("serving: 0 payloads stored, 0 jobs queued, 1 jobs journaled;")
        assert "waiting for the store: " in status


async def _restarted_by_the_watchdog(unit: Unit) -> None:
    """Wait for the restart; fails if it does not come within the watchdog's timeout."""
    with trio.fail_after(WATCHDOG + RESTART):
        # Not "1": on a very busy machine the watchdog may end the new process too.
        while await unit.show("NRestarts") == "0":  # noqa: ASYNC110 - systemd can only be polled
            await trio.sleep(0.1)
        await unit.wait_until("ActiveState", "active")
    output = await unit.machine.run("journalctl", "--no-pager", "--unit", unit.name)
    assert "Watchdog timeout" in output


async def _stored(server: S3Server, bucket: str, payloads: list[bytes]) -> None:
    """Wait until all payloads are in the bucket."""
    missing = set(payloads)
    with trio.fail_after(DEADLINE):
        while missing:
            found = await trio.to_thread.run_sync(server.objects, bucket)
            missing -= {line for body in found.values() for line in body.splitlines()}
