"""Measure the CPU time of a process tree from the first POST to the last stored payload."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import trio

from tests.bench.load import run_wrk
from tests.bench.peers.peer import post_once
from tests.bench.sink import sink
from tests.support import proc

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bench.load import Drive, Load, Work
    from tests.bench.peers.peer import Peer, Running
    from tests.bench.sink import Sink

# Seconds for the slowest peer, which stores one object a payload, to store all payloads.
_SETTLE_WITHIN: Final = 300.0
# Longer than BATCH_LINGER, because the last batch is not full.
QUIET: Final = 2.0
_LOOK_EVERY: Final = 0.1


@dataclass(frozen=True, slots=True)
class Result:
    """Results of one peer under one load."""

    peer: str
    work: Work
    drive: Drive
    load: Load
    stored: int
    """Number of payloads in the store."""
    objects: int
    """Number of PUTs."""
    cpu_seconds: float
    """User and system time of its process tree, from the first POST to the last stored payload."""
    idle_rss: int
    """Bytes, before the first POST."""
    peak_rss: int
    """Bytes."""
    seconds: float
    """From the first POST to the last stored payload."""
    sink_cpu_seconds: float
    """CPU time of the store, which is not part of the above."""
    children_cpu_seconds: float = 0.0
    """The part of ``cpu_seconds`` of processes that it has started."""
    beside_cpu_seconds: float = 0.0
    """CPU time of a server that the daemon uses, which is not part of the above."""

    @property
    def cpu_us(self) -> float:
        """CPU microseconds per stored payload, including the cost of refusals."""
        return self.cpu_seconds * 1e6 / self.stored

    @property
    def others_cores(self) -> float:
        """Cores that the generator and the store used during the load."""
        return (self.load.cpu_seconds + self.sink_cpu_seconds) / self.load.seconds


async def measure(
    peer: Peer,
    work: Work,
    drive: Drive,
    folder: Path,
    *,
    compressed: bool = False,
    beside: int | None = None,
) -> Result:
    """Run one peer, warmed up, under one load in an empty folder; returns the results.

    ``compressed``: the lengths of objects do not tell how many payloads they have. ``beside``: the
    process id of a server that it uses. AssertionError if the store did not get every acknowledged
    payload.
    """
    length = None if compressed else len(work.payload(0))
    async with sink(folder, length) as store, peer.start(folder, store) as running:
        idle_rss = _peak_rss(running)
        await _warm_up(running, replace(work, payloads_per_post=1), drive, folder)
        seen, _ = await settled(store, 1)
        objects = store.objects
        cpu, sink_cpu = proc.cpu_seconds(running.pid), proc.cpu_seconds(store.pid)
        children_cpu = proc.children_cpu_seconds(running.pid)
        beside_cpu = 0.0 if beside is None else proc.cpu_seconds(beside)
        start = trio.current_time()
        load = await run_wrk(running.url, work, drive, folder)
        answered = (load.answers - load.refused) * work.payloads_per_post
        stored, at = await settled(store, seen + answered)
        result = Result(
            peer=peer.name,
            work=work,
            drive=drive,
            load=load,
            stored=stored - seen,
            objects=store.objects - objects,
            cpu_seconds=proc.cpu_seconds(running.pid) - cpu,
            idle_rss=idle_rss,
            peak_rss=_peak_rss(running),
            seconds=at - start,
            sink_cpu_seconds=proc.cpu_seconds(store.pid) - sink_cpu,
            children_cpu_seconds=proc.children_cpu_seconds(running.pid) - children_cpu,
            beside_cpu_seconds=0.0 if beside is None else proc.cpu_seconds(beside) - beside_cpu,
        )
        accepted = await running.accepted()
        assert accepted in (None, stored), f"{accepted} accepted, {stored} stored"
        # Requests without an answer at the end of wrk may have been accepted too.
        unanswered = drive.connections * work.payloads_per_post
        assert result.stored <= answered + unanswered, f"{stored} stored, {answered} answered"
        return result


async def _warm_up(running: Running, work: Work, drive: Drive, folder: Path) -> None:
    """Post until all modules are loaded and the connections to the store are made."""
    await post_once(running.url, work.body(), drive.token)
    few = replace(drive, seconds=1, most_posts=4 * drive.connections)
    await run_wrk(running.url, work, few, folder)


async def settled(store: Sink, at_least: int, within: float = _SETTLE_WITHIN) -> tuple[int, float]:
    """Wait until the store has ``at_least`` payloads and gets no more, at most ``within`` s.

    Returns their number, and trio's time of the last one. AssertionError if they do not arrive.
    """
    count, at = -1, 0.0
    with trio.move_on_after(within) as scope:
        while count < at_least or trio.current_time() - at < QUIET:
            store.read()
            if store.payloads != count:
                count, at = store.payloads, trio.current_time()
            await trio.sleep(_LOOK_EVERY)  # the log of nginx can only be polled
    assert not scope.cancelled_caught, f"the store got {count} payloads of {at_least}"
    return count, at


def _peak_rss(running: Running) -> int:
    return sum(proc.peak_rss(pid) for pid in proc.tree(running.pid))
