"""Journals on a disk whose syncs are held or fail; runs as a process for the suite of journals.

    python -m tests.journal.sync_scenarios SCENARIO STATE_DIR ENVIRON MODULE FUNCTION

A journal whose syncs happen in another process (a database server) needs scenarios of its own.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Final

import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.errors import RefusedError
from payloadd.journal.api import Receipt
from tests.journal.opener import ALL, Opener
from tests.support.journal import append, batch, contents, id_of, part, until
from tests.support.sync_gate import SyncGate

_CUSHION: Final = 0.05
"""Seconds in which a journal that does not wait for the disk would answer."""
_RECOVERY: Final = 5
"""Seconds in which a journal has to notice that the disk works again."""
_MANY: Final = 20_000
"""Parts of a large request."""


async def requests_are_answered_after_the_sync(opener: Opener, syncs: SyncGate) -> None:
    """Hold syncs. Otherwise a 2xx would be lost with the power."""
    async with opener.run() as run:
        await run.accept(1)
        # Several times: another sync of the journal than that of the request may be held.
        for number, size in [(10, 1), (11, 1), (12, 1), (20, 2**20), (21, 2**20), (22, 2**20)]:
            offered, answered = len(run.pipeline.received), len(run.outcomes)
            request = [part(number)._replace(lines=b"%0*d\n" % (size, number))]
            syncs.hold()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run.outcome_of, Receipt(id_of(number), 1), request)
                await until(lambda: syncs.waiting or len(run.outcomes) > answered)  # noqa: B023
                await wait_all_tasks_blocked(_CUSHION)
                assert len(run.outcomes) == answered, "answered before the sync"
                assert len(run.pipeline.received) == offered, "offered before the sync"
                syncs.release()
            assert isinstance(run.outcomes[-1], Receipt)


async def seals_wait_for_the_sync(opener: Opener, syncs: SyncGate) -> None:
    """Hold syncs. Otherwise an upload after a power cut could have other members."""
    async with opener.run() as run:
        await run.accept(1, count=9)
        for one in run.pipeline.received:
            sealed = trio.Event()

            async def seal(event: trio.Event = sealed, number: int = one.seq) -> None:
                await run.journal.seal(batch(run.pipeline.received[number - 1]))
                event.set()

            syncs.hold()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(seal)
                await until(lambda: syncs.waiting or sealed.is_set())  # noqa: B023
                await wait_all_tasks_blocked(_CUSHION)
                assert not sealed.is_set(), "sealed before the sync"
                syncs.release()


async def failed_writes_are_refused_and_end(opener: Opener, syncs: SyncGate) -> None:
    """Fail syncs. Otherwise a 2xx would be lost, or the daemon would need a restart."""
    async with opener.run() as run:
        await run.accept(1, count=5)
        one, two, three, four, five = run.pipeline.received
        syncs.fail()
        wanted = append(10, b"key", 3)
        refused = await run.outcome_of(wanted.receipt, wanted.parts, b"key")
        assert isinstance(refused, RefusedError), "a write that failed was accepted"
        assert (refused.code, refused.least_wait >= 1) == ("DISK_ERROR", True)
        sealed = trio.Event()

        async def seal() -> None:
            await run.journal.seal(batch(two, three))
            sealed.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(seal)
            run.journal.settle(batch(one, sealed=False))
            run.journal.bury(batch(four, sealed=False), "InvalidRequest", "no")
            for _ in range(2):
                await run.journal.pulse()
            assert run.journal.refusal() is not None, "ready although the disk refuses writes"
            assert not sealed.is_set(), "sealed although the disk refuses writes"
            syncs.release()
        with trio.fail_after(_RECOVERY):
            await until(lambda: run.journal.refusal() is None)
        again = append(20, b"key", 1)
        assert await run.outcome_of(again.receipt, again.parts, b"key") == again.receipt
        assert [one.id for one in run.pipeline.received[5:]] == [id_of(20)]
        newest = run.pipeline.received[-1]
    assert run.pipeline.payloads["closed"] == 4
    with opener.inspect() as inspection:
        assert [letter.payloads for letter in inspection.dead()] == [1]
    async with opener.run() as run:
        found = await run.journal.sealed()
        assert found is not None
        assert contents(found.jobs) == contents([two, three])
        assert contents(await run.journal.page(*ALL)) == contents([two, five, newest])[1:]


async def large_requests_wait_for_room(opener: Opener, syncs: SyncGate) -> None:
    """Hold syncs. Otherwise large requests would take more memory than the machine has."""
    async with opener.run() as run:
        syncs.hold()
        outcomes: list[object] = []
        for first in (1, 10**6):
            wanted = append(first, count=_MANY)
            run.journal.append(wanted.receipt, wanted.parts, None, outcomes.append)
        waited = trio.Event()

        async def wait() -> None:
            await run.journal.wait_for_room()
            waited.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await until(lambda: syncs.waiting)
            await wait_all_tasks_blocked(_CUSHION)
            assert not waited.is_set(), "the memory has room for any number of requests"
            syncs.release()
        await until(lambda: len(outcomes) == 2)
        await run.journal.wait_for_room()


_ALL_SCENARIOS: Final = (
    requests_are_answered_after_the_sync,
    seals_wait_for_the_sync,
    failed_writes_are_refused_and_end,
    large_requests_wait_for_room,
)
SCENARIOS: Final = [one.__name__ for one in _ALL_SCENARIOS]


def _main(name: str, folder: str, environ: str, module: str, function: str) -> None:
    syncs = SyncGate()
    opener = Opener(Path(folder), json.loads(environ), getattr(import_module(module), function))
    (scenario,) = [one for one in _ALL_SCENARIOS if one.__name__ == name]
    trio.run(scenario, opener, syncs)


if __name__ == "__main__":
    _main(*sys.argv[1:])
