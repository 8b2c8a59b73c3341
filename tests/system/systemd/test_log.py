"""The log in systemd's journal: fields, priorities and large entries."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.support.clients import post
from tests.system.systemd.unit import DEADLINE, configured

if TYPE_CHECKING:
    from tests.system.systemd.machine import Machine

pytestmark = pytest.mark.no_cover

_PROBE = """
import sys
from payloadd.observe import journald
event = {"event": "probe", "level": "error", "small": "x\\x1by", "exception": "a\\nb"}
event["large"] = "z" * int(sys.argv[1])
sys.exit(not journald.send(journald.entry(event)))
"""


async def test_an_event_is_found_by_its_name_and_has_fields(machine: Machine) -> None:
    """`journalctl PAYLOADD_EVENT=...` and `journalctl -p warning` would not show it."""
    env = {"STORE_URL": "s3://nowhere", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}
    env |= {"AWS_REGION": "r", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    async with configured(machine, env) as unit:
        await unit.systemctl("start")
        await post(unit.url, [b"1"])
        run = f"_SYSTEMD_INVOCATION_ID={await unit.show('InvocationID')}"
        with trio.fail_after(DEADLINE):
            # The journal can only be polled.
            while not (waits := await _entries(machine, "store_unavailable", run)):  # noqa: ASYNC110
                await trio.sleep(0.1)
        (listening,) = await _entries(machine, "listening", run)
        assert {name: listening[name] for name in ("PRIORITY", "SYSLOG_IDENTIFIER")} == {
            "PRIORITY": "6",
            "SYSLOG_IDENTIFIER": "payloadd",
        }
        assert str(listening["MESSAGE"]).startswith("listening ")
        assert waits[0]["PRIORITY"] == "4"
        assert waits[0]["PAYLOADD_LEVEL"] == "warning"
        assert waits[0]["PAYLOADD_CODE"] == "ConnectError"
        shown = await machine.run("journalctl", "--no-pager", "PAYLOADD_EVENT=store_unavailable")
        assert "store_unavailable" in shown
        assert "code=ConnectError" in shown


@pytest.mark.parametrize("size", [10, 1_000_000])
async def test_journald_takes_a_large_entry(machine: Machine, size: int) -> None:
    """A long error text would be missing in the journal: it does not fit into one datagram."""
    python = "/opt/payloadd/bin/python"
    status, output = await machine.attempt(python, "-c", _PROBE, str(size))
    assert status == 0, output
    entry = (await _entries(machine, "probe"))[-1]
    assert entry["PAYLOADD_SMALL"] == "x\\u001by"
    assert entry["PAYLOADD_EXCEPTION"] == "a\nb"
    assert str(entry["MESSAGE"]).endswith("\n  a\n  b")
    assert len(entry["PAYLOADD_LARGE"]) == size


async def test_the_last_event_of_a_run_belongs_to_the_unit(machine: Machine) -> None:
    """`journalctl -u payloadd` would not show how it ended: journald may read it after the exit."""
    async with configured(machine) as unit:
        for _ in range(3):
            await unit.systemctl("start")
            run = f"_SYSTEMD_INVOCATION_ID={await unit.show('InvocationID')}"
            await unit.systemctl("stop")
            (drained,) = await _entries(machine, "drained", run)
            assert drained["_SYSTEMD_UNIT"] == unit.name


async def test_json_lines_in_the_journal_have_priorities(machine: Machine) -> None:
    """`journalctl -p warning` would not show warnings of a daemon that logs JSON."""
    env = {"LOG_FORMAT": "json"}
    async with configured(machine, env) as unit:
        await unit.systemctl("start")
        lines = [entry for entry in await unit.entries() if "{" in str(entry["MESSAGE"])]
        found = {json.loads(line["MESSAGE"])["event"]: line["PRIORITY"] for line in lines}
        assert found["listening"] == "6"


async def _entries(machine: Machine, event: str, *matches: str) -> list[dict[str, Any]]:
    """Return the journal's entries of an event."""
    await machine.run("journalctl", "--sync")
    text = await machine.run(
        *("journalctl", "--quiet", "--all", "--output=json", "--no-pager"),
        f"PAYLOADD_EVENT={event}",
        *matches,
    )
    return [json.loads(line) for line in text.splitlines()]
