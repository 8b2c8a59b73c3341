"""Measure the cost of a payload, and memory, with more and more connections."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from tests.bench.compare import WORKS, compare
from tests.bench.load import Drive
from tests.bench.peers import BATCHED
from tests.bench.report import MIB, Section

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.bench.measure import Result

CONNECTIONS: Final = (1, 8, 64, 512)


async def growth(seconds: int, report: Callable[[str], object]) -> Section:
    """Measure payloadd in batches with 1, 8, 64 and 512 connections."""
    results: list[Result] = []
    for count in CONNECTIONS:
        drive = Drive(connections=count, seconds=seconds)
        results += await compare([BATCHED], [WORKS["single"]], drive, 1, report)
    return Section(
        "Growth",
        f"{BATCHED.name}, one payload of 200 bytes a POST, one run each.",
        [_row(result, results[0]) for result in results],
        [asdict(result) | {"cpu_us": result.cpu_us} for result in results],
    )


def _row(result: Result, first: Result) -> dict[str, str]:
    return {
        "connections": str(result.drive.connections),
        "CPU µs a payload": f"{result.cpu_us:.1f}",
        "ratio to the first": f"{result.cpu_us / first.cpu_us:.2f}",
        "POSTs a second": f"{result.load.rate:.0f}",
        "p99 ms": f"{result.load.p99 / 1000:.1f}",
        "idle RSS MiB": f"{result.idle_rss / MIB:.0f}",
        "peak RSS MiB": f"{result.peak_rss / MIB:.0f}",
    }
