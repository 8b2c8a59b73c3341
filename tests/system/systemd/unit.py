"""A unit of the machine, and its settings, systemctl and journalctl."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import trio

from tests.support.loopback import free_port, http_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tests.system.systemd.machine import Machine

DEADLINE: Final = 90.0
"""Seconds after which a wait of a test fails."""
_POLL_INTERVAL: Final = 0.1


@dataclass(frozen=True)
class Unit:
    """``payloadd.service`` or an instance, and its port."""

    machine: Machine
    name: str
    port: int

    @property
    def url(self) -> str:
        """The URL of the public address."""
        return f"http://127.0.0.1:{self.port}"

    async def systemctl(self, verb: str) -> str:
        """Run ``systemctl VERB`` for the unit; AssertionError if it fails."""
        return await self.machine.run("systemctl", verb, self.name)

    async def show(self, name: str) -> str:
        """Return a property of the unit."""
        command = ("systemctl", "show", "--value", f"--property={name}", self.name)
        return (await self.machine.run(*command)).strip()

    async def pid(self) -> int:
        """Return the process id, inside the machine, of the main process."""
        return int(await self.show("MainPID"))

    async def wait_until(self, name: str, value: str) -> None:
        """Wait until a property of the unit has a value."""
        with trio.fail_after(DEADLINE):
            # systemd can only be polled.
            while await self.show(name) != value:  # noqa: ASYNC110
                await trio.sleep(_POLL_INTERVAL)

    async def entries(self) -> list[dict[str, Any]]:
        """Return the journal's entries of the last run."""
        invocation = await self.show("InvocationID")
        await self.machine.run("journalctl", "--sync")
        text = await self.machine.run(
            *("journalctl", "--quiet", "--output=json", "--no-pager"),
            f"_SYSTEMD_INVOCATION_ID={invocation}",
        )
        return [json.loads(line) for line in text.splitlines()]

    async def events(self) -> list[dict[str, Any]]:
        """Return the events of the last run, with their fields as texts."""
        return [
            {
                name.removeprefix("PAYLOADD_").lower(): value
                for name, value in entry.items()
                if name.startswith("PAYLOADD_")
            }
            for entry in await self.entries()
            if "PAYLOADD_EVENT" in entry
        ]


@asynccontextmanager
async def configured(
    machine: Machine, settings: Mapping[str, str] | None = None, service: str = ""
) -> AsyncIterator[Unit]:
    """Yield payloadd.service, stopped and without state, with these settings and a drop-in.

    The kernel chooses the ports, because the machine shares them with the host.
    """
    unit = Unit(machine, "payloadd.service", free_port())
    own = {
        "BIND": f"127.0.0.1:{unit.port}",
        "ADMIN_BIND": f"127.0.0.1:{free_port()}",
        "AWS_EC2_METADATA_DISABLED": "true",
        **(settings or {}),
    }
    machine.write("etc/payloadd/payloadd.env", "".join(f"{n}={own[n]}\n" for n in own), 0o600)
    machine.write("etc/systemd/system/payloadd.service.d/test.conf", f"[Service]\n{service}\n")
    await machine.run("systemctl", "daemon-reload")
    try:
        yield unit
    finally:
        with trio.CancelScope(shield=True):
            await machine.run("systemctl", "kill", "-s", "KILL", unit.name, check=False)
            await machine.run("systemctl", "stop", unit.name, check=False)
            await machine.run("systemctl", "reset-failed", unit.name, check=False)
            await machine.run("sh", "-c", "rm -rf /var/lib/payloadd/*")


async def status_of(url: str, path: str) -> int:
    """Return the status of a GET."""
    async with http_client() as client:
        return (await client.get(url + path)).status_code
