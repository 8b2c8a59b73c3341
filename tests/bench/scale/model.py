"""Compute what a rate of POSTs takes in each of the three modes. No I/O.

A process is one core at most. It is planned with ``LOAD`` of its CPU, so that answers keep their
99th percentile and a machine may die. Payloads come to a process at random, one in a POST; a batch
begins with its first payload and ends after the linger, or when it is full. So a process makes
``1 / (linger + 1 / rate)`` objects a second, or more where batches are full earlier.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

Mode = Literal["disk", "store", "postgres"]
MODES: Final[tuple[Mode, ...]] = ("disk", "store", "postgres")

LOAD: Final = 0.5
"""The share of a process, and of a database, that is planned to be used."""
LEAST_NODES: Final = 2
"""Machines of a fleet: one may die."""
PUTS_A_PREFIX: Final = 3500
"""PUTs a second that S3 takes for each partitioned prefix ("Best practices design patterns:
optimizing Amazon S3 performance")."""
SHARDS: Final = 256
"""Prefixes that ``{shard}`` makes."""
_DAY: Final = 86_400
_HOURS: Final = 24


@dataclass(frozen=True, slots=True)
class Costs:
    """What one process was measured to take in one mode."""

    payload: float
    """CPU seconds for a payload that comes alone in its POST, without a share of a PUT."""
    put: float
    """CPU seconds for an object: its batch, its signature and its PUT."""
    answer: float
    """Seconds of the 99th percentile of the answer at half the peak, without the wait for a
    batch and its PUT."""


@dataclass(frozen=True, slots=True)
class Batching:
    """The bounds of a batch."""

    linger: float
    """Seconds."""
    most_payloads: int = 10_000
    most_bytes: int = 8 * 2**20
    payload_bytes: int = 200

    @property
    def most(self) -> int:
        """The payloads of a full batch."""
        return max(1, min(self.most_payloads, self.most_bytes // (self.payload_bytes + 1)))


@dataclass(frozen=True, slots=True)
class Prices:
    """Assumptions about a cloud: dollars, seconds, and what a database does."""

    put: float = 0.000005
    """Dollars for a PUT (S3 Standard)."""
    node: float = 0.08
    """Dollars an hour for a machine of ``cores``."""
    cores: int = 2
    database: float = 0.40
    """Dollars an hour for a database with a synchronous standby."""
    database_rate: float = 20_000.0
    """Payloads a second that one database takes at its peak."""
    database_answer: float = 0.02
    """Seconds of the 99th percentile of its commits."""
    put_seconds: float = 0.05
    """Seconds of a PUT."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a rate takes in one mode."""

    mode: Mode
    rate: float
    """POSTs a second, with one payload each."""
    linger: float
    processes: int
    nodes: int
    databases: int
    puts: float
    """PUTs a second of all processes."""
    shards: int
    """Prefixes that the keys need: 1, or those of ``{shard}``."""
    waiting: float
    """Requests under way, as many connections of clients that send one after the other."""
    p99: float
    """Seconds of the 99th percentile of an answer."""
    put_dollars: float
    """Dollars a day for PUTs."""
    other_dollars: float
    """Dollars a day for machines and databases."""
    cpu: float
    """CPU seconds a second, of all processes."""

    @property
    def puts_a_prefix(self) -> float:
        """PUTs a second for each prefix."""
        return self.puts / self.shards

    @property
    def dollars(self) -> float:
        """Dollars a day, without those for bytes that are kept and sent."""
        return self.put_dollars + self.other_dollars

    @property
    def dollars_a_million(self) -> float:
        """Dollars for a million payloads."""
        return self.dollars / (self.rate * _DAY) * 1e6


def objects_a_second(rate: float, batching: Batching) -> float:
    """Return the objects a second of one process that gets ``rate`` payloads a second."""
    if rate <= 0:
        return 0.0
    by_linger = 1 / (batching.linger + 1 / rate)
    return max(by_linger, rate / batching.most)


def wait_for_batch(rate: float, batching: Batching) -> float:
    """Return the longest seconds that a payload waits for the end of its batch."""
    return min(batching.linger, batching.most / rate) if rate > 0 else batching.linger


def plan(mode: Mode, rate: float, costs: Costs, batching: Batching, prices: Prices) -> Plan:
    """Return what ``rate`` POSTs a second take."""
    processes = _processes(rate, costs, batching)
    each = rate / processes
    puts = processes * objects_a_second(each, batching)
    nodes = max(LEAST_NODES, math.ceil(processes / prices.cores))
    databases = 0
    p99 = costs.answer
    if mode == "postgres":
        databases = max(1, math.ceil(rate / (LOAD * prices.database_rate)))
        p99 = prices.database_answer
    elif mode == "store":
        p99 += wait_for_batch(each, batching) + 2 * prices.put_seconds
    return Plan(
        mode=mode,
        rate=rate,
        linger=batching.linger,
        processes=processes,
        nodes=nodes,
        databases=databases,
        puts=puts,
        shards=SHARDS if puts > PUTS_A_PREFIX else 1,
        waiting=rate * _mean_answer(mode, p99, each, batching, prices),
        p99=p99,
        put_dollars=puts * _DAY * prices.put,
        other_dollars=_HOURS * (nodes * prices.node + databases * prices.database),
        cpu=rate * costs.payload + puts * costs.put,
    )


def _processes(rate: float, costs: Costs, batching: Batching) -> int:
    """Return the processes that are needed, at most ``LOAD`` busy each; each machine runs one."""
    processes = LEAST_NODES
    while _cpu_of_each(rate / processes, costs, batching) > LOAD:
        busy = _cpu_of_each(rate / processes, costs, batching) / LOAD
        processes = max(processes + 1, math.floor(processes * busy))
    return processes


def _cpu_of_each(rate: float, costs: Costs, batching: Batching) -> float:
    return rate * costs.payload + objects_a_second(rate, batching) * costs.put


def _mean_answer(mode: Mode, p99: float, rate: float, batching: Batching, prices: Prices) -> float:
    """Return the mean seconds of an answer: half of a linger is the mean wait for a batch."""
    if mode != "store":
        return p99 / 2
    return wait_for_batch(rate, batching) / 2 + prices.put_seconds
