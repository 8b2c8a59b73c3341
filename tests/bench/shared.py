"""Compare the journal that machines share, in PostgreSQL, with the one on a disk.

One server of PostgreSQL, with syncs, is on the same machine and in the same file system. Each
measurement gets a new database. The answers of ``DURABILITY=store`` are measured beside: they wait
for a batch and its PUT, so their peak needs many connections.
"""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

from tests.bench.compare import WORKS
from tests.bench.latency import Round, measure_round
from tests.bench.load import Drive
from tests.bench.measure import Result, measure
from tests.bench.peers import BATCHED, STORED
from tests.bench.peers.payloadd import payloadd
from tests.bench.report import Section, ratio
from tests.support.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.bench.peers.peer import Peer

LOADS: Final = (("single", 16), ("single", 64), ("hundred", 16))
"""Works, and connections."""
_NAME: Final = "payloadd, batched, in PostgreSQL"
STORE_CONNECTIONS: Final = 512
_numbers = count(1)


async def shared(seconds: int, rounds: int, report: Callable[[str], object]) -> list[Section]:
    """Measure the cost of a payload, and the answers at half of the peak, ``rounds`` times."""
    with _server() as server:
        return [
            await _costs(server, seconds, rounds, report),
            await _answers(server, seconds, rounds, report),
        ]


@contextmanager
def _server() -> Iterator[PostgresServer]:
    with tempfile.TemporaryDirectory(prefix="payloadd-bench-") as folder:
        Path(folder).chmod(0o755)
        server = PostgresServer(Path(folder) / "server")
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop("fast")


def _peer(server: PostgresServer) -> Peer:
    """Return payloadd with a new database."""
    name = f"bench{next(_numbers)}"
    server.execute(f"CREATE DATABASE {name}")
    return payloadd(_NAME, JOURNAL_URL=server.url(name))


async def _costs(
    server: PostgresServer, seconds: int, rounds: int, report: Callable[[str], object]
) -> Section:
    rows, figures = [], []
    for name, connections in LOADS:
        work, drive = WORKS[name], Drive(connections, seconds)
        found: tuple[list[Result], list[Result]] = [], []
        for _ in range(rounds):
            for results, peer in zip(found, (BATCHED, _peer(server)), strict=True):
                with tempfile.TemporaryDirectory(prefix="payloadd-bench-") as folder:
                    results.append(
                        await measure(peer, work, drive, Path(folder), beside=server.pid)
                    )
                report(f"{work.name}, {peer.name}: {results[-1].cpu_us:.1f} µs a payload")
        rows += [_row(one, found[0]) for one in found]
        figures += [asdict(one) | {"cpu_us": one.cpu_us} for results in found for one in results]
    return Section(
        "A journal that machines share",
        "CPU of payloadd from the first POST until the last payload is stored, and of the server of"
        f" PostgreSQL in the same time; medians of {rounds}. The ratio is the median of the ratios"
        " within a round.",
        rows,
        figures,
    )


def _row(rounds: Sequence[Result], base: Sequence[Result]) -> dict[str, str]:
    servers = [one.beside_cpu_seconds * 1e6 / one.stored for one in rounds]
    return {
        "load": rounds[0].work.name,
        "connections": str(rounds[0].drive.connections),
        "daemon": rounds[0].peer,
        "CPU µs a payload": f"{median(one.cpu_us for one in rounds):.2f}",
        "ratio to the disk": f"{ratio(rounds, base):.2f}",
        "of the server µs": f"{median(servers):.2f}",
        "POSTs a second": f"{median(one.load.rate for one in rounds):.0f}",
        "p99 ms": f"{median(one.load.p99 for one in rounds) / 1000:.1f}",
    }


async def _answers(
    server: PostgresServer, seconds: int, rounds: int, report: Callable[[str], object]
) -> Section:
    found: dict[str, list[Round]] = {}
    for _ in range(rounds):
        for peer, connections in (
            (BATCHED, 32),
            (_peer(server), 32),
            (STORED, STORE_CONNECTIONS),
        ):
            report(peer.name)
            one = await measure_round(seconds, report, peer, connections)
            found.setdefault(peer.name, []).append(one)
    return Section(
        "Answers at half of the peak",
        "One payload of 200 bytes a POST; 32 connections, and"
        f" {STORE_CONNECTIONS} where the answer waits for the store (BATCH_LINGER 250 ms, a PUT"
        f" takes the time of nginx on the loopback). Medians of {rounds}.",
        [_answer_row(name, ones) for name, ones in found.items()],
        {name: [asdict(one) for one in ones] for name, ones in found.items()},
    )


def _answer_row(name: str, rounds: Sequence[Round]) -> dict[str, str]:
    return {
        "daemon": name,
        "peak, POSTs a second": f"{median(one.peak.rate for one in rounds):.0f}",
        "at half: POSTs a second": f"{median(one.half.rate for one in rounds):.0f}",
        "p50 ms": f"{median(one.half.p50 for one in rounds) / 1000:.1f}",
        "p99 ms": f"{median(one.half.p99 for one in rounds) / 1000:.1f}",
        "not 2xx": str(sum(one.half.refused + one.half.broken for one in rounds)),
        "median fsync ms": f"{median(one.syncs.p50 for one in rounds) * 1000:.2f}",
    }
