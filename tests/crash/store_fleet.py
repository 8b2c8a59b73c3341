"""A fleet of daemons with DURABILITY=store that are killed again and again, and its clients.

Each client posts to a daemon that it chooses at random. Some never repeat a request; some repeat
it, at another daemon, until it is acknowledged. Every payload is in one of these states:

* acknowledged (201): it has to be in the bucket; once, if its request was sent once;
* posted once, and not acknowledged: in the bucket at most once;
* repeated: in the bucket as often as it was sent, at most.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Final

import trio

from tests.crash.bucket import read_bucket
from tests.crash.posting_clients import ask
from tests.crash.proxy import s3_proxy
from tests.crash.store_faults import StoreFaults, open_store_faults
from tests.crash.wire import GONE
from tests.support.clients import body_of, make_payload, seeded
from tests.support.daemon import Daemon, started

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tests.support.s3 import S3Server

_CLIENTS: Final = 16
_DAEMONS: Final = 3
_TIMEOUT: Final = 30.0
_WITHIN: Final = 120.0
"""Seconds in which what has to happen has happened, on a busy machine too."""
_SETTINGS: Final = {
    "DURABILITY": "store",
    "BATCH_LINGER": "20ms",
    "BATCH_MAX_PAYLOADS": "20",
    "MAX_WORKERS": "4",
    "REQUEST_TIMEOUT": "1s",
    "UPLOAD_TIMEOUT": "2s",
    "ADMIN_BIND": "off",
    "STATE_DIR": "/proc/never",
}
_REFUSALS: Final = frozenset({"STORE_UNAVAILABLE", "QUEUE_FULL", "DRAINING"})


async def until(condition: Callable[[], object]) -> None:
    """Return once ``condition`` holds."""
    with trio.fail_after(_WITHIN):
        while not condition():  # noqa: ASYNC110 - no event reports the change
            await trio.sleep(0.02)


class FleetClients:
    """The clients of a fleet, and what they were promised."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._numbers = itertools.count()
        self.ports: dict[int, int] = {}
        """The ports of the daemons that listen, by their number."""
        self.stopping = False
        self.sent: Counter[bytes] = Counter()
        """How often each payload was sent."""
        self.acknowledged: set[bytes] = set()
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        """Answers that no state of the store allows."""

    async def run(self) -> None:
        """Post until ``stopping`` is set."""
        async with trio.open_nursery() as nursery:
            for _ in range(_CLIENTS):
                nursery.start_soon(self._client, seeded(self._rng.getrandbits(32)))

    async def accepted(self) -> None:
        """Wait until further payloads are acknowledged."""
        before = len(self.acknowledged)
        await until(lambda: len(self.acknowledged) > before)

    async def _client(self, rng: random.Random) -> None:
        while not self.stopping:
            count = rng.choice((1, 1, rng.randint(2, 30)))
            payloads = [make_payload(next(self._numbers), rng) for _ in range(count)]
            repeats = rng.random() < 0.5
            while not await self._post(payloads, rng) and repeats and not self.stopping:  # noqa: ASYNC110 - the client's pause
                await trio.sleep(rng.random() / 10)
            await trio.sleep(rng.random() / 50)

    async def _post(self, payloads: Sequence[bytes], rng: random.Random) -> bool:
        """Post to one of the daemons; return whether the payloads were acknowledged."""
        await until(lambda: self.ports)
        port = rng.choice([*self.ports.values()])
        self.sent.update(payloads)
        answer = None
        with trio.move_on_after(_TIMEOUT), suppress(*GONE):
            answer = await ask(port, body_of(payloads), [])
        if answer is None:
            self.answers["none"] += 1
            return False
        status, found = answer[0], json.loads(answer[1])
        self.answers[f"{status} {found.get('code', '')}".rstrip()] += 1
        if status == 201 and found["accepted"] == len(payloads) and found["objects"]:
            self.acknowledged.update(payloads)
            return True
        if status != 503 or found.get("code") not in _REFUSALS:
            self.wrong.append(f"{status} {found}")
        return False

    def violations(self, stored: Counter[bytes]) -> list[str]:
        """Return a line for every promise that a bucket with these payloads breaks."""
        return [
            *self.wrong,
            *(f"lost: {one!r}" for one in self.acknowledged - stored.keys()),
            *(f"never posted: {one!r}" for one in stored.keys() - self.sent.keys()),
            *(
                f"{times} times, sent {self.sent[one]} times: {one!r}"
                for one, times in stored.items()
                if times > self.sent[one]
            ),
        ]


class Fleet:
    """The daemons, each in a task that starts it again when it was killed."""

    def __init__(self, folder: Path, environ: Mapping[str, str], clients: FleetClients) -> None:
        self._folder = folder
        self._environ = environ
        self._clients = clients
        self.daemons: dict[int, Daemon] = {}
        self.killed = 0
        self.ending = False
        """Whether daemons are drained, and not started again."""

    async def run(self, number: int) -> None:
        """Run the daemon of this number, again and again, until ``end`` was called."""
        folder = self._folder / str(number)
        folder.mkdir()
        while not self._is_ending():
            async with started(folder, self._environ) as daemon:
                await daemon.wait_for_event("listening", _WITHIN)
                self.daemons[number] = daemon
                self._clients.ports[number] = int(daemon.url.rpartition(":")[2])
                status = await daemon.wait(within=600)
                self._clients.ports.pop(number, None)
                errors = [one for one in daemon.log if one["level"] in {"error", "critical"}]
                assert not errors, errors
                if self._is_ending():
                    line = daemon.event("drained")
                    assert (status, line["journaled"], line["lost"]) == (0, 0, 0)

    def _is_ending(self) -> bool:
        return self.ending

    async def kill(self, number: int) -> None:
        """Kill a daemon, once it listens."""
        await until(lambda: number in self._clients.ports)
        self.killed += 1
        self._clients.ports.pop(number)
        self.daemons[number].process.kill()

    async def end(self) -> None:
        """Drain all daemons."""
        await until(lambda: len(self._clients.ports) == len(self.daemons))
        self.ending = True
        for daemon in self.daemons.values():
            daemon.process.terminate()


async def torture_fleet(
    folder: Path, server: S3Server, bucket: str, events: Sequence[str], seed: int
) -> Counter[str]:
    """Run a fleet through ``events``; returns the number of each answer.

    An event is the name of a state of the store (see ``StoreFaults``) or ``kill``. Raises
    AssertionError if a promise was broken.
    """
    rng = seeded(seed)
    clients = FleetClients(rng)
    await trio.to_thread.run_sync(server.make_bucket, bucket)
    async with s3_proxy(server) as proxy, AsyncExitStack() as stack:
        faults: StoreFaults = await stack.enter_async_context(open_store_faults(server, proxy))
        environ = {**proxy.environ, **_SETTINGS, "STORE_URL": f"s3://{bucket}/a"}
        fleet = Fleet(folder, environ, clients)
        async with trio.open_nursery() as nursery:
            for number in range(_DAEMONS):
                nursery.start_soon(fleet.run, number)
            await until(lambda: len(clients.ports) == _DAEMONS)
            nursery.start_soon(clients.run)
            for event in events:
                await trio.sleep(rng.uniform(0.2, 0.6))
                if event == "kill":
                    await fleet.kill(rng.randrange(_DAEMONS))
                    continue
                await faults.set_state(event)  # type: ignore[arg-type]
                if event == "stores and fails":
                    await faults.failed_once_more()
                elif event == "works":
                    await clients.accepted()
            await faults.end()
            await clients.accepted()
            clients.stopping = True
            await fleet.end()
    objects = await trio.to_thread.run_sync(server.objects, bucket)
    data = {key: body for key, body in objects.items() if "payloadd-check-" not in key}
    broken = clients.violations(read_bucket(data))
    assert not broken, "\n".join([f"{len(broken)} promises broken:", *broken[:20]])
    assert fleet.killed == events.count("kill")
    await trio.to_thread.run_sync(server.drop_bucket, bucket)
    failed = Counter({"(failed after storing)": proxy.failed_after_storing})
    return clients.answers + failed + Counter({"(acknowledged)": len(clients.acknowledged)})
