"""Several processes on one socket: each is restarted without an error for a client."""

from __future__ import annotations

import ssl
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import httpx
import pytest
import trio

from tests.support.clients import Posts
from tests.support.loopback import free_port, http_client
from tests.system.systemd.unit import DEADLINE, Unit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.system.systemd.machine import Machine

pytestmark = pytest.mark.no_cover

KEEPING: Final = 6
"""The number of clients that keep their connection."""
FRESH: Final = 6
"""The number of clients that open a connection for each request."""
BETWEEN: Final = 100
"""The number of 202s between two restarts."""


@asynccontextmanager
async def instances(machine: Machine, count: int) -> AsyncIterator[list[Unit]]:
    """Run ``count`` processes on one socket."""
    port = free_port()
    admin = free_port()
    units = [Unit(machine, f"payloadd@{number}.service", port) for number in range(1, count + 1)]
    machine.write("etc/payloadd/payloadd.env", "AWS_EC2_METADATA_DISABLED=true\n", 0o600)
    for number in range(1, count + 1):
        # Each instance has its own address; the kernel chooses the port.
        own = f"ADMIN_BIND=127.0.0.{number}:{admin}\n"
        machine.write(f"etc/payloadd/payloadd@{number}.env", own, 0o600)
    listen = f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{port}\n"
    machine.write("etc/systemd/system/payloadd.socket.d/test.conf", listen)
    await machine.run("/opt/payloadd/bin/payloadd", "systemd", "install", "--instances", str(count))
    try:
        await machine.run("systemctl", "start", "payloadd.target")
        for unit in units:
            await unit.wait_until("ActiveState", "active")
        yield units
    finally:
        with trio.CancelScope(shield=True):
            await machine.run("systemctl", "stop", "payloadd.target", "payloadd.socket")
            await machine.run("sh", "-c", "rm -rf /var/lib/payloadd/*")


class NewConnections:
    """Clients that open a connection for every POST."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: Counter[str] = Counter()
        self.stop = False

    async def run(self) -> None:
        """Post until ``stop`` is set."""
        verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        while not self.stop:
            try:
                async with httpx.AsyncClient(trust_env=False, timeout=60, verify=verify) as http:
                    answer = await http.post(f"{self.url}/v1/payloads", json={"payloads": [1]})
                    self.answers[str(answer.status_code)] += 1
            except httpx.TransportError as error:
                self.answers[type(error).__name__] += 1


async def _until_cancelled(
    posts: Posts,
    collections: list[list[bytes]],
    *,
    task_status: trio.TaskStatus[trio.CancelScope],
) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await posts.run(collections, KEEPING)


async def test_a_restart_of_each_instance_fails_no_request(machine: Machine) -> None:
    """Every upgrade would be an outage of seconds for all clients."""
    async with instances(machine, 2) as units:
        posts, new_connections = Posts(units[0].url), NewConnections(units[0].url)
        before = [await unit.pid() for unit in units]
        async with trio.open_nursery() as nursery:
            collections = [[b"%d" % number] for number in range(1_000_000)]
            keeping = await nursery.start(_until_cancelled, posts, collections)
            for _ in range(FRESH):
                nursery.start_soon(new_connections.run)
            for unit in units:
                await posts.wait_until_acknowledged(len(posts.acknowledged) + BETWEEN, DEADLINE)
                await unit.systemctl("restart")
            await posts.wait_until_acknowledged(len(posts.acknowledged) + BETWEEN, DEADLINE)
            new_connections.stop = True
            keeping.cancel()
        assert before != [await unit.pid() for unit in units]
        assert set(posts.answers) == {"202"}, posts.summary()
        assert set(new_connections.answers) == {"202"}, new_connections.answers


async def test_connections_wait_while_a_single_instance_restarts(machine: Machine) -> None:
    """A restart of a single process would refuse connections."""
    async with instances(machine, 1) as (unit,):
        new_connections = NewConnections(unit.url)
        async with trio.open_nursery() as nursery:
            for _ in range(FRESH):
                nursery.start_soon(new_connections.run)
            await unit.systemctl("restart")
            new_connections.stop = True
        assert set(new_connections.answers) == {"202"}, new_connections.answers


async def test_each_instance_has_its_own_journal_and_admin_address(machine: Machine) -> None:
    """With a shared journal or admin address the second instance would not start."""
    async with instances(machine, 2) as units, http_client() as http:
        for number, _ in enumerate(units, 1):
            env = (machine.root / f"etc/payloadd/payloadd@{number}.env").read_text()
            answer = await http.get(f"http://{env.strip().removeprefix('ADMIN_BIND=')}/readyz")
            assert answer.status_code == 200
            assert (machine.root / f"var/lib/payloadd/{number}/journal.db").exists()
