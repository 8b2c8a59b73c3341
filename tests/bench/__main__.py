"""``python -m tests.bench``: what a payload costs, from the POST to the store.

One run of the daemon, one of wrk, one nginx that says 200 to every PUT; all on the
loopback, all bounded in time. The figures are printed as a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import trio

from tests.bench.load import Work
from tests.bench.measure import measure
from tests.bench.peers import PEERS
from tests.bench.report import table
from tests.support.tools import missing_tools


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmark; returns 0, or 2 where a tool is missing."""
    options = _parse(arguments)
    missing = missing_tools("nginx", "wrk")
    if missing:
        sys.stderr.write(f"{missing}\n")
        return 2
    work = Work(
        connections=options.connections,
        seconds=options.duration,
        payloads_per_post=options.payloads_per_post,
        payload_bytes=options.payload_bytes,
    )
    results = []
    for _ in range(options.rounds):
        for name in options.peer or PEERS:
            with tempfile.TemporaryDirectory(prefix="payloadd-bench-") as folder:
                results.append(trio.run(measure, PEERS[name], work, Path(folder)))
    sys.stdout.write(table(results))
    if options.json:
        options.json.write_text(json.dumps([result.figures() for result in results], indent=2))
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--connections", type=int, default=32, help="clients at once (32)")
    parser.add_argument("--duration", type=int, default=10, help="seconds of load (10)")
    parser.add_argument("--payloads-per-post", type=int, default=1, help="payloads a POST (1)")
    parser.add_argument("--payload-bytes", type=int, default=200, help="bytes a payload (200)")
    parser.add_argument("--rounds", type=int, default=1, help="how often everything runs (1)")
    parser.add_argument(
        "--peer", action="append", choices=list(PEERS), help="what to measure (all); repeatable"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
