"""One measurement: the CPU of a process tree from the first POST to the last stored payload."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from tests.bench.load import run_wrk
from tests.bench.report import Result
from tests.bench.sink import sink
from tests.support import proc

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bench.load import Work
    from tests.bench.peers import Counts, Peer, Running

# A full queue of 10,000 jobs at 100 objects a second, and some.
_SETTLE_WITHIN: Final = 180.0
# Asking costs the daemon a few milliseconds of CPU, which are counted as its own.
_ASK_EVERY: Final = 0.25


async def measure(peer: Peer, work: Work, folder: Path) -> Result:
    """Run one peer under one load in an empty folder, and return what it took."""
    async with sink(folder) as store, peer.start(folder, store) as running:
        before = proc.cpu_seconds(running.pid)
        seen = await store.requests()
        start = trio.current_time()
        load = await run_wrk(running.url, work, folder)
        counts = await _settled(running)
        seconds = trio.current_time() - start
        return Result(
            peer=peer.name,
            work=work,
            load=load,
            counts=counts,
            cpu_seconds=proc.cpu_seconds(running.pid) - before,
            peak_rss=sum(proc.peak_rss(pid) for pid in proc.tree(running.pid)),
            # The sink counts the question itself as well.
            puts=await store.requests() - seen - 1,
            seconds=seconds,
        )


async def _settled(running: Running) -> Counts:
    """Wait until all that was accepted is stored or given up, and return the counts."""
    with trio.fail_after(_SETTLE_WITHIN):
        # A process tells its counts only when asked.
        while not (counts := await running.counts()).settled:  # noqa: ASYNC110
            await trio.sleep(_ASK_EVERY)
    return counts
