"""The process of the hostile clients: ``python -m tests.bench.hostile.load KIND PORT SECONDS``.

Prints a line when the bytes to send are made, begins after a line on standard input, and prints its
results as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections import Counter

from tests.bench.hostile.engine import Engine
from tests.bench.hostile.kinds import KINDS

_NICE = 5
"""Niceness: the daemon and the honest clients get the CPU first."""


def main(name: str, port: int, seconds: float) -> None:
    """Run one attack."""
    os.nice(_NICE)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    kind = KINDS[name]
    tally: Counter[str] = Counter()
    engine = Engine(port, kind.connections, kind.prepare(tally), tally)
    _say("ready")
    sys.stdin.readline()
    before = _cpu_seconds()
    engine.run(seconds)
    _say(json.dumps({"tally": tally, "cpu_seconds": _cpu_seconds() - before}))


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
