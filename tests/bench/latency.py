"""Measure the 99th percentile of the answer at half the peak rate, and of an fsync.

A durable answer cannot be faster than the disk, so the disk is measured in the same run, in the
same file system, while the daemon is idle.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING, Final

from tests.bench.compare import WORKS
from tests.bench.load import Drive, Load, run_wrk
from tests.bench.measure import settled
from tests.bench.peers import BATCHED
from tests.bench.peers.peer import post_once
from tests.bench.report import Section
from tests.bench.sink import sink

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.bench.peers.peer import Peer

_CONNECTIONS: Final = 32
_SYNCS: Final = 300
_PAGE: Final = 4096
# wrk has a pause, not a rate: the second run uses the rate that the first one's pause gave.
TRIES: Final = 3


@dataclass(frozen=True, slots=True)
class Syncs:
    """Times to append a page and sync it, in seconds."""

    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Round:
    """One run at full load and one at half of it, and the disk's times before both."""

    syncs: Syncs
    peak: Load
    half: Load

    @property
    def in_syncs(self) -> float:
        """The 99th percentile at half the peak rate, in median syncs."""
        return self.half.p99 / 1e6 / self.syncs.p50


async def latency(seconds: int, rounds: int, report: Callable[[str], object]) -> Section:
    """Find the peak rate with 32 connections and measure at half of it, ``rounds`` times."""
    found = [await measure_round(seconds, report) for _ in range(rounds)]
    in_syncs = median(one.in_syncs for one in found)
    p99 = median(one.half.p99 for one in found) / 1000
    return Section(
        "Latency",
        f"{BATCHED.name}, {_CONNECTIONS} connections, one payload of 200 bytes a POST, beside"
        f" {_SYNCS} times appending 4 KiB and fdatasync in the same file system. At half the peak"
        f" rate the 99th percentile of the answer is {p99:.1f} ms, {in_syncs:.1f} median fsyncs"
        f" (medians of {rounds}).",
        [row for one in found for row in _rows(one)],
        [asdict(one) for one in found],
    )


async def measure_round(
    seconds: int,
    report: Callable[[str], object],
    peer: Peer = BATCHED,
    connections: int = _CONNECTIONS,
) -> Round:
    """Measure syncs, the peak, and half of it."""
    work = WORKS["single"]
    with tempfile.TemporaryDirectory(prefix="payloadd-bench-") as name:
        folder = Path(name)
        async with sink(folder, work.payload_bytes) as store, peer.start(folder, store) as it:
            await post_once(it.url, work.body())
            syncs = time_syncs(folder)
            peak = await run_wrk(it.url, work, Drive(connections, seconds), folder)
            await settled(store, peak.answers)
            report(f"peak: {peak.rate:.0f} POSTs a second")
            half, pause = peak, 0.0
            for _ in range(TRIES):
                pause = _next_pause(pause, half, peak.rate / 2, connections)
                half = await run_wrk(it.url, work, Drive(connections, seconds, None, pause), folder)
                report(f"a pause of {pause * 1000:.1f} ms: {half.rate:.0f} POSTs a second")
            await settled(store, half.answers)
    return Round(syncs, peak, half)


def time_syncs(folder: Path) -> Syncs:
    """Append pages to a file in ``folder``, each with a sync, as commits of the journal do."""
    times = []
    fd = os.open(folder / "syncs", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for _ in range(_SYNCS):
            start = time.perf_counter()
            os.write(fd, bytes(_PAGE))
            os.fdatasync(fd)
            times.append(time.perf_counter() - start)
    finally:
        os.close(fd)
    return Syncs(median(times), quantiles(times, n=100)[-1])


def _next_pause(pause: float, seen: Load, rate: float, connections: int) -> float:
    """Return the pause for ``rate``, from the rate that the last pause gave.

    A connection's cycle is the pause and the answer; the time of the answer is assumed to be
    constant.
    """
    answer = max(connections / seen.rate - pause, 0.0)
    return max(connections / rate - answer, 0.001)


def _rows(one: Round) -> list[dict[str, str]]:
    return [_row("peak", one.peak, one), _row("half of it", one.half, one)]


def _row(name: str, load: Load, one: Round) -> dict[str, str]:
    return {
        "rate": name,
        "POSTs a second": f"{load.rate:.0f}",
        "share of the peak": f"{load.rate / one.peak.rate:.2f}",
        "p50 ms": f"{load.p50 / 1000:.1f}",
        "p99 ms": f"{load.p99 / 1000:.1f}",
        "median fsync ms": f"{one.syncs.p50 * 1000:.2f}",
        "p99 fsync ms": f"{one.syncs.p99 * 1000:.2f}",
        "p99 in median fsyncs": f"{load.p99 / 1e6 / one.syncs.p50:.1f}",
        "p99 in p99 fsyncs": f"{load.p99 / 1e6 / one.syncs.p99:.1f}",
    }
