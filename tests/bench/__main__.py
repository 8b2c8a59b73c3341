"""``python -m tests.bench``: the cost of a payload, from the POST to the store.

Compares payloadd with other implementations in one run, round after round: one daemon, one wrk, and
one nginx that answers every PUT with 200 and counts; all on the loopback, all bounded in time.
Peers that are not installed are named and left out. Writes table.md, plot.png and figures.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from tests.bench.backlog import backlog
from tests.bench.clients import part as clients_part
from tests.bench.clients.kinds import KINDS as CLIENTS
from tests.bench.compare import WORKS, compare, sections
from tests.bench.formats import formats
from tests.bench.growth import growth
from tests.bench.hostile import part as hostile_part
from tests.bench.hostile.kinds import KINDS
from tests.bench.latency import latency
from tests.bench.load import Drive
from tests.bench.pair import pair
from tests.bench.peers import PEERS
from tests.bench.plot import draw
from tests.bench.report import document
from tests.bench.scale.model import Prices
from tests.bench.scale.part import scale
from tests.bench.share import NoSharesError
from tests.bench.shared import shared
from tests.bench.streams import streams
from tests.support.postgres import find_programs
from tests.support.tools import missing_tools

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.bench.peers.peer import Peer
    from tests.bench.report import Section

_RESULTS: Final = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns 0, or 2 if a tool is missing."""
    options = _parse(arguments)
    missing = missing_tools("nginx", "wrk")
    if missing:
        _print_progress(missing)
        return 2
    options.results.mkdir(parents=True, exist_ok=True)
    found: list[Section] = []
    loads = []
    for part in options.part or ["peers"]:
        loads.append(os.getloadavg()[0])
        found += _PARTS[part](options)
    text = document(found, loads)
    sys.stdout.write(text)
    (options.results / "table.md").write_text(text)
    figures = {section.title: section.figures for section in found}
    (options.results / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def _peers(options: argparse.Namespace) -> list[Section]:
    peers = _installed([PEERS[name] for name in options.peer or PEERS])
    works = [WORKS[name] for name in options.work or WORKS]
    drive = Drive(options.connections, options.duration)
    run = partial(compare, most_payloads=options.most_payloads)
    results = trio.run(run, peers, works, drive, options.rounds, _print_progress)
    if not results:
        return []
    try:
        draw(results, options.results / "plot.png")
    except ImportError:
        _print_progress("no plot: matplotlib not found; pip install -e '.[bench]'")
    return sections(results)


def _installed(peers: list[Peer]) -> list[Peer]:
    for peer in peers:
        if missing := peer.missing():
            _print_progress(f"left out: {peer.name}: {missing}")
    return [peer for peer in peers if peer.missing() is None]


def _growth(options: argparse.Namespace) -> list[Section]:
    return [trio.run(growth, options.duration, _print_progress)]


def _latency(options: argparse.Namespace) -> list[Section]:
    return [trio.run(latency, options.duration, options.rounds, _print_progress)]


def _backlog(options: argparse.Namespace) -> list[Section]:
    return [trio.run(backlog, options.jobs, options.rounds, _print_progress)]


def _pair(options: argparse.Namespace) -> list[Section]:
    try:
        return [trio.run(pair, options.duration, options.rounds, _print_progress)]
    except NoSharesError as error:
        _print_progress(f"left out: two processes on one socket: {error}")
        return []


def _streams(options: argparse.Namespace) -> list[Section]:
    return [trio.run(streams, options.duration, options.rounds, _print_progress)]


def _formats(options: argparse.Namespace) -> list[Section]:
    if find_spec("pyarrow") is None:
        _print_progress("left out: formats: pyarrow not found; pip install -e '.[parquet]'")
        return []
    found = partial(formats, options.connections, options.duration, options.rounds)
    return trio.run(found, _print_progress)


def _hostile(options: argparse.Namespace) -> list[Section]:
    run = partial(hostile_part.hostile, options.kind or [], options.duration)
    return [trio.run(run, _print_progress)]


def _clients(options: argparse.Namespace) -> list[Section]:
    if missing := clients_part.missing():
        _print_progress(f"left out: clients: {missing}")
        return []
    found = partial(clients_part.clients, options.client or [], options.connections)
    return trio.run(found, options.duration, options.rounds, _print_progress)


def _scale(options: argparse.Namespace) -> list[Section]:
    prices = Prices(
        put_seconds=options.put_ms / 1000,
        node=options.node_price,
        database=options.database_price,
        database_rate=options.database_rate,
        database_answer=options.database_ms / 1000,
    )
    run = partial(scale, prices, options.duration, options.rounds, options.connections)
    return [trio.run(run, _print_progress)]


def _shared(options: argparse.Namespace) -> list[Section]:
    if find_programs() is None:
        _print_progress("left out: the shared journal: PostgreSQL is not installed")
        return []
    return trio.run(shared, options.duration, options.rounds, _print_progress)


_PARTS: Final[dict[str, Callable[[argparse.Namespace], list[Section]]]] = {
    "peers": _peers,
    "growth": _growth,
    "latency": _latency,
    "backlog": _backlog,
    "pair": _pair,
    "streams": _streams,
    "formats": _formats,
    "hostile": _hostile,
    "scale": _scale,
    "shared": _shared,
    "clients": _clients,
}


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--part",
        action="append",
        choices=[*_PARTS],
        help="part to measure, by default peers; repeatable",
    )
    add(
        "--peer",
        action="append",
        choices=[*PEERS],
        help="peer to compare, by default all; repeatable",
    )
    add(
        "--work",
        action="append",
        choices=[*WORKS],
        help="work of the peers, by default all; repeatable",
    )
    add(
        "--kind",
        action="append",
        choices=[*KINDS],
        help="kind of hostile clients, by default all; repeatable",
    )
    add(
        "--client",
        action="append",
        choices=[*CLIENTS],
        help="form of client of the part clients, by default all; repeatable",
    )
    add("--rounds", type=int, default=3, help="how often each part is measured")
    add("--duration", type=int, default=5, help="seconds of load, of each kind")
    add("--connections", type=int, default=32, help="number of connections")
    add(
        "--most-payloads",
        type=int,
        default=10_000,
        help="limit for peers that store one object a payload",
    )
    add("--jobs", type=int, default=1_000_000, help="jobs of the backlog")
    usual = Prices()
    add("--put-ms", type=float, default=usual.put_seconds * 1000, help="scale: time of a PUT")
    add("--node-price", type=float, default=usual.node, help="scale: dollars an hour")
    add("--database-price", type=float, default=usual.database, help="scale: dollars an hour")
    add("--database-rate", type=float, default=usual.database_rate, help="scale: payloads a second")
    add(
        "--database-ms",
        type=float,
        default=usual.database_answer * 1000,
        help="scale: 99th percentile of a commit",
    )
    add("--results", type=Path, default=_RESULTS, metavar="FOLDER", help="folder for the results")
    return parser.parse_args(arguments)


def _print_progress(text: str) -> None:
    """Print progress to standard error; standard output gets only the tables."""
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
