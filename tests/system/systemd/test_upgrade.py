"""Upgrade a running payloadd.target from 0.1.0 to this version, as the README says."""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest
import trio

from payloadd import __version__
from tests.crash.proxy import Proxy
from tests.fixtures.version_3.journals import WHEEL
from tests.support.clients import Posts, body_of
from tests.support.loopback import free_port, http_client
from tests.support.tools import need_tools
from tests.support.wheel import build_wheel
from tests.system.systemd.machine import booted
from tests.system.systemd.tree import WHEELS, tree
from tests.system.systemd.unit import DEADLINE, Unit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.s3 import S3Server
    from tests.system.systemd.machine import Machine

pytestmark = [pytest.mark.large, pytest.mark.no_cover]

OLD: Final = (
    "python3 -m venv /opt/payloadd",
    "/opt/payloadd/bin/pip install payloadd==0.1.0",
    "/opt/payloadd/bin/payloadd systemd install --instances 2",
)
"""The installation of 0.1.0, as its README said."""
NEW: Final = (
    "python3 -m venv /opt/payloadd-0.2",
    "/opt/payloadd-0.2/bin/pip install payloadd",
    "/opt/payloadd-0.2/bin/payloadd systemd run --instance 1 check",
    "/opt/payloadd-0.2/bin/payloadd systemd install",
)
"""The commands of the README for an upgrade, before the restarts."""
INSTANCES: Final = 2
KEEPING: Final = 2
"""The number of clients that keep their connection."""
FRESH: Final = 2
"""The number of clients that open a connection for each request."""
BETWEEN: Final = 200
"""The number of 202s between two steps."""
_INSTALL_SECONDS: Final = 600.0


class SlowProxy(Proxy):
    """A proxy that delays every request to an S3 server by ``pause`` seconds."""

    pause = 0.0

    async def _ask(self, *request: Any) -> Any:  # noqa: ANN401 - as it is passed on
        await trio.sleep(self.pause)
        return await super()._ask(*request)


class Load:
    """Clients that post numbers, and repeat a number until it is accepted."""

    def __init__(self, url: str) -> None:
        self.kept = Posts(url)
        """The answers on kept connections."""
        self.new: Counter[str] = Counter()
        """The answers on connections of one request."""
        self.accepted: list[bytes] = []
        """The payloads that were accepted on these."""
        self.stopped = False
        self._numbers = count()
        self._ended = trio.Event()

    async def run(self) -> None:
        """Post until ``end`` is called."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.kept.run, self, KEEPING)
            for _ in range(FRESH):
                nursery.start_soon(self._open_connections)
        self._ended.set()

    async def end(self) -> None:
        """Let the clients post no new payloads, and wait until they have ended."""
        self.stopped = True
        await self._ended.wait()

    def __iter__(self) -> Iterator[list[bytes]]:
        """Return what the clients with kept connections post."""
        return self

    def __next__(self) -> list[bytes]:
        """Return a collection that got no answer, or a new one."""
        if self.kept.unanswered:
            return self.kept.unanswered.pop()
        if self.stopped:
            raise StopIteration
        return [b"%d" % next(self._numbers)]

    async def _open_connections(self) -> None:
        while not self.stopped:
            payload = b"%d" % next(self._numbers)
            headers = {"Content-Type": "application/json"}
            url, body = f"{self.kept.url}/v1/payloads", body_of([payload])
            try:
                async with http_client() as http:
                    answer = await http.post(url, content=body, headers=headers)
            except httpx.TransportError as error:
                self.new[type(error).__name__] += 1
                continue
            self.new[str(answer.status_code)] += 1
            self.accepted += [payload] * answer.is_success

    async def more(self) -> None:
        """Wait until further requests of both kinds are answered."""
        await self.kept.wait_until_acknowledged(len(self.kept.acknowledged) + BETWEEN, DEADLINE)


@pytest.fixture
def old_machine(tmp_path: Path) -> Iterator[Machine]:
    """Boot a machine and install payloadd 0.1.0 on it."""
    need_tools("debootstrap", "systemd-nspawn")
    folder = tmp_path / "machine"
    folder.mkdir()
    with booted(tree(), folder) as machine:
        shutil.copy(WHEEL, machine.root / WHEELS)
        build_wheel(tmp_path / "wheel")
        for wheel in (tmp_path / "wheel").glob("*.whl"):
            shutil.copy(wheel, machine.root / WHEELS)
        machine.write("etc/pip.conf", f"[global]\nno-index = true\nfind-links = /{WHEELS}\n")
        yield machine


async def _commands(machine: Machine, commands: tuple[str, ...]) -> str:
    """Run commands of an administrator; returns their output."""
    outputs = [
        await machine.run("sh", "-c", command, within=_INSTALL_SECONDS) for command in commands
    ]
    return "".join(outputs)


async def _start_old(machine: Machine, settings: dict[str, str]) -> list[Unit]:
    """Start two instances of 0.1.0 on one socket."""
    port, admin = free_port(), free_port()
    machine.write(
        "etc/payloadd/payloadd.env", "".join(f"{n}={settings[n]}\n" for n in settings), 0o600
    )
    for number in range(1, INSTANCES + 1):
        own = f"ADMIN_BIND=127.0.0.{number}:{admin}\n"
        machine.write(f"etc/payloadd/payloadd@{number}.env", own, 0o600)
    listen = f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{port}\n"
    machine.write("etc/systemd/system/payloadd.socket.d/test.conf", listen)
    await _commands(machine, OLD)
    units = [Unit(machine, f"payloadd@{one}.service", port) for one in range(1, INSTANCES + 1)]
    await machine.run("systemctl", "start", "payloadd.target")
    for unit in units:
        await unit.wait_until("ActiveState", "active")
    return units


async def test_an_upgrade_under_load_loses_nothing_and_fails_no_request(
    old_machine: Machine, seaweed: S3Server
) -> None:
    """An upgrade would be an outage for clients, or lose or double what they have posted."""
    machine = old_machine
    bucket = await trio.to_thread.run_sync(seaweed.make_bucket, "upgraded")
    proxy = SlowProxy(seaweed)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        settings = {**proxy.environ, "STORE_URL": f"s3://{bucket}", "MAX_WORKERS": "8"}
        # A backlog stays in the journals of 0.1.0, which are the new version's then.
        settings |= {"AWS_EC2_METADATA_DISABLED": "true", "DRAIN_TIMEOUT": "1s"}
        units = await _start_old(machine, settings)
        load = Load(units[0].url)
        nursery.start_soon(load.run)
        await load.more()
        printed = await _commands(machine, NEW)
        assert "in use by process" in printed
        assert "failed" not in printed
        proxy.pause = 0.5
        await load.more()
        backlogs = [_jobs(machine, number) for number in range(1, INSTANCES + 1)]
        for number, unit in enumerate(units, 1):
            assert _version(machine, number) == 3
            await unit.systemctl("restart")
            assert _version(machine, number) == 5
            await load.more()
        await machine.run("rm", "-r", "/opt/payloadd")
        for unit in units:
            assert "/opt/payloadd-0.2/" in await unit.show("ExecStart")
            events = {one["event"]: one for one in await unit.events()}
            assert events["listening"]["version"] == __version__
        await load.end()
        proxy.pause = 0.0
        objects = await _all_stored(machine, seaweed, bucket)
        nursery.cancel_scope.cancel()
    assert min(backlogs) > 0
    assert set(load.new) == {"202"}, load.new
    # A server may close a connection at the moment at which a client sends the next request on it.
    assert set(load.kept.answers) <= {"202", "cut off"}, load.kept.summary()
    assert load.kept.answers["cut off"] <= KEEPING * INSTANCES, load.kept.summary()
    lines = Counter(line for body in objects.values() for line in body.splitlines())
    assert lines == Counter([*load.accepted, *load.kept.acknowledged])
    assert {key.startswith("dt=") for key in objects} == {True, False}


async def _all_stored(machine: Machine, server: S3Server, bucket: str) -> dict[str, bytes]:
    """Wait until both journals are empty; returns the objects."""
    with trio.fail_after(DEADLINE):
        # Another process changes the journals.
        while any(_jobs(machine, one) for one in range(1, INSTANCES + 1)):  # noqa: ASYNC110
            await trio.sleep(0.2)
    return await trio.to_thread.run_sync(server.objects, bucket)


def _jobs(machine: Machine, number: int) -> int:
    """Return the number of jobs that wait in the journal of an instance."""
    return _value(machine, number, "SELECT jobs FROM totals")


def _version(machine: Machine, number: int) -> int:
    """Return the format version of the journal of an instance."""
    return _value(machine, number, "PRAGMA user_version")


def _value(machine: Machine, number: int, query: str) -> int:
    path = machine.root / f"var/lib/payloadd/{number}/journal.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        (value,) = database.execute(query).fetchone()
    return int(value)
