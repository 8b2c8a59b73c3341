"""Measure what one process takes in each mode, and print what 1 to 100 million POSTs a minute take.

The machine measures the CPU of a payload and of a PUT, and the time of a durable answer on its
disk. All else is an assumption: prices, the time of a PUT to S3, and the database. They are options
of the program, and the text above the table names them.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

from tests.bench.compare import WORKS
from tests.bench.latency import measure_round
from tests.bench.load import Drive
from tests.bench.measure import measure
from tests.bench.peers import BATCHED, ONE, STORED
from tests.bench.report import Section
from tests.bench.scale.model import (
    LOAD,
    MODES,
    PUTS_A_PREFIX,
    Batching,
    Costs,
    Plan,
    Prices,
    plan,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.bench.peers.peer import Peer
    from tests.bench.scale.model import Mode

MILLION: Final = 1e6 / 60
"""A million POSTs a minute, a second."""
_RATES: Final = (1, 10, 100)
"""Million POSTs a minute."""
LINGERS: Final[Mapping[Mode, float]] = {"disk": 1.0, "store": 0.25, "postgres": 1.0}
"""BATCH_LINGER of each mode in the table: clients wait for it with DURABILITY=store alone."""
_BATCHES: Final[list[tuple[Mode, Batching]]] = [
    *((mode, Batching(LINGERS[mode])) for mode in MODES),
    ("disk", Batching(LINGERS["disk"], most_payloads=1)),
]
_ALONE: Final = 3000
"""Payloads that are stored one by one, for the cost of a PUT."""
_POSTGRES_FACTOR: Final = 1.3
"""CPU of a payload with a shared journal, in terms of one on a disk, until it is measured."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The costs of each mode on this machine."""

    costs: Mapping[Mode, Costs]


async def scale(
    prices: Prices, seconds: int, rounds: int, connections: int, report: Callable[[str], object]
) -> Section:
    """Measure the costs, and return the table."""
    measured = await measure_costs(seconds, rounds, connections, report)
    return table_of(measured, prices)


async def measure_costs(
    seconds: int, rounds: int, connections: int, report: Callable[[str], object]
) -> Measured:
    """Measure the costs of a payload and of a PUT, medians of ``rounds``."""
    half = [await measure_round(seconds, report) for _ in range(rounds)]
    disk_answer = median(one.half.p99 for one in half) / 1e6
    drive = Drive(connections, seconds)
    payload = {}
    for mode, peer in (("disk", BATCHED), ("store", STORED)):
        payload[mode] = await _cost(peer, drive, rounds)
        report(f"{peer.name}: {payload[mode] * 1e6:.1f} µs a payload")
    alone = await _cost(ONE, replace(drive, most_posts=_ALONE), rounds)
    put = max(0.0, alone - payload["disk"])
    report(f"a PUT: {put * 1e6:.1f} µs")
    costs: dict[Mode, Costs] = {
        "disk": Costs(payload["disk"], put, disk_answer),
        "store": Costs(payload["store"], put, 0.0),
        "postgres": Costs(payload["disk"] * _POSTGRES_FACTOR, put, 0.0),
    }
    return Measured(costs)


async def _cost(peer: Peer, drive: Drive, rounds: int) -> float:
    """Return the CPU seconds a payload, the median of ``rounds``."""
    found = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="payloadd-bench-") as folder:
            result = await measure(peer, WORKS["single"], drive, Path(folder))
        found.append(result.cpu_us / 1e6)
    return median(found)


def table_of(measured: Measured, prices: Prices) -> Section:
    """Return the table of all rates and modes."""
    plans = [
        plan(mode, rate * MILLION, measured.costs[mode], batching, prices)
        for rate in _RATES
        for mode, batching in _BATCHES
    ]
    costs = ", ".join(f"{mode} {one.payload * 1e6:.0f} µs" for mode, one in measured.costs.items())
    return Section(
        "Scale",
        "Computed, not run: what POSTs of one payload of 200 bytes take. Measured on this machine:"
        f" CPU of a payload ({costs}; a shared journal is reckoned as {_POSTGRES_FACTOR} times a"
        f" disk), of a PUT ({measured.costs['disk'].put * 1e6:.0f} µs), the answer from the disk."
        f" Assumed: machines of {prices.cores} cores, {LOAD:.0%} busy, at {prices.node} dollars an"
        f" hour; {prices.put_seconds * 1000:.0f} ms and {prices.put} dollars for a PUT; a database"
        f" that takes {prices.database_rate:.0f} payloads a second, {LOAD:.0%} busy, at"
        f" {prices.database} dollars an hour, with a p99 of {prices.database_answer * 1000:.0f} ms."
        " S3 takes 3,500 PUTs a second for each prefix: beyond it keys need {shard}, which makes"
        " 256. Dollars for bytes are not in it: they are the same in each mode.",
        [_row(one) for one in plans],
        [asdict(one) for one in plans],
    )


def _row(one: Plan) -> dict[str, str]:
    databases = f" + {one.databases} databases" if one.databases else ""
    shard = "{shard}" if one.shards > 1 else "none"
    if one.puts_a_prefix > PUTS_A_PREFIX:
        shard += ": too many"
    return {
        "million POSTs a minute": f"{one.rate / MILLION:.0f}",
        "mode": one.mode,
        "linger": f"{one.linger:g}s",
        "machines": f"{one.nodes}{databases}",
        "payloads an object": f"{one.rate / one.puts:.0f}",
        "PUTs a second": f"{one.puts:.0f}",
        "of a prefix": f"{one.puts_a_prefix:.0f} ({shard})",
        "p99 of the answer": f"{one.p99 * 1000:.0f} ms",
        "requests under way": f"{one.waiting:.0f}",
        "dollars a day": f"{one.dollars:.2f} (PUTs {one.put_dollars:.2f})",
        "dollars a million": f"{one.dollars_a_million:.4f}",
    }
