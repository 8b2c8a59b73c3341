"""Compare a daemon with tokens and 16 streams with one without both.

The requests of each connection go to all streams in turn, so the fast path can rely on no head
that the connection has sent before.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

from payloadd.ingress.auth import new_token
from tests.bench.compare import WORKS
from tests.bench.load import Drive
from tests.bench.measure import measure
from tests.bench.peers.payloadd import payloadd
from tests.bench.peers.peer import PATH
from tests.bench.report import Section, ratio

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.bench.measure import Result

_CONNECTIONS: Final = 32
_NAMES: Final = tuple(f"s{number}" for number in range(16))
_GOAL: Final = 1.10
"""The highest ratio of CPU time."""


async def streams(seconds: int, rounds: int, report: Callable[[str], object]) -> Section:
    """Measure both daemons, ``rounds`` times."""
    plain, guarded = [], []
    for number in range(1, rounds + 1):
        with tempfile.TemporaryDirectory(prefix="payloadd-bench-") as folder:
            plain.append(await _plain(Path(folder), seconds))
        with tempfile.TemporaryDirectory(prefix="payloadd-bench-") as folder:
            guarded.append(await _guarded(Path(folder), seconds))
        report(f"round {number}: {plain[-1].cpu_us:.1f} and {guarded[-1].cpu_us:.1f} µs a payload")
    return Section(
        "Tokens and streams",
        f"payloadd, batches of 1,000, {_CONNECTIONS} connections, one payload of 200 bytes a POST;"
        f" once without tokens and streams, once with a token and with {len(_NAMES)} streams in"
        f" turn. CPU a payload with both against without: {ratio(guarded, plain):.2f} (goal: at"
        f" most {_GOAL:.2f}; the median of {rounds} rounds).",
        [_row(runs) for runs in (plain, guarded)],
        [asdict(one) | {"cpu_us": one.cpu_us} for one in (*plain, *guarded)],
    )


async def _plain(folder: Path, seconds: int) -> Result:
    peer = payloadd("without tokens and streams")
    return await measure(peer, WORKS["single"], Drive(_CONNECTIONS, seconds), folder)


async def _guarded(folder: Path, seconds: int) -> Result:
    token, line = new_token("bench", ",".join(("default", *_NAMES)))
    (folder / "tokens").write_text(f"{line}\n")
    peer = payloadd(
        f"tokens, {len(_NAMES)} streams",
        AUTH_TOKENS=str(folder / "tokens"),
        STREAMS=",".join(_NAMES),
    )
    paths = tuple(f"{PATH}/{name}" for name in _NAMES)
    drive = replace(Drive(_CONNECTIONS, seconds), paths=paths, token=token)
    return await measure(peer, WORKS["single"], drive, folder)


def _row(runs: Sequence[Result]) -> dict[str, str]:
    return {
        "daemon": runs[0].peer,
        "CPU µs a payload": f"{median(one.cpu_us for one in runs):.1f}",
        "payloads a second": f"{median(one.stored / one.seconds for one in runs):.0f}",
        "payloads an object": f"{median(one.stored / one.objects for one in runs):.0f}",
        "p50 ms": f"{median(one.load.p50 for one in runs) / 1000:.1f}",
        "p99 ms": f"{median(one.load.p99 for one in runs) / 1000:.1f}",
        "not 2xx": str(sum(one.load.refused + one.load.broken for one in runs)),
    }
