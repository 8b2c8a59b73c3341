"""Compare Parquet of eight columns with NDJSON.zst: CPU, and small POSTs beside the encoding.

Both formats have the same payloads and the same batches, in turn. The CPU time is that of the
daemon and of the process that encodes Parquet.
"""

from __future__ import annotations

import random
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import trio

from tests.bench.load import Drive, Load, Work, run_wrk
from tests.bench.measure import measure, settled
from tests.bench.peers.payloadd import payloadd
from tests.bench.peers.peer import post_once
from tests.bench.report import Section, difference
from tests.bench.sink import sink

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.bench.measure import Result
    from tests.bench.peers.peer import Peer

COLUMNS: Final = """\
user     int64
session  string
time     timestamp
event    string
url      string
country  string     $.geo.country
price    double
ok       boolean
"""
_GOAL_US: Final = 8.0
"""The most CPU microseconds a payload that Parquet may cost beside NDJSON.zst."""
_GOAL_MS: Final = 20.0
"""The highest 99th percentile of small POSTs beside the encoding, in milliseconds."""
_MANY: Final = Drive(connections=8, pause=0.025)
"""Eight connections with 100 payloads a POST: about 30,000 payloads a second."""
_FEW: Final = Drive(connections=8, pause=0.02)
"""Small POSTs beside them: about 400 a second."""


@dataclass(frozen=True, slots=True)
class Events(Work):
    """Requests with events of which no two are equal, as clicks on a web site."""

    def payload(self, index: int) -> str:
        """Return one event of ``payload_bytes``."""
        chosen = random.Random(index)  # noqa: S311 - protects no secret
        frame = (
            f'{{"user":{chosen.randrange(10**4, 10**5)},"session":"{chosen.getrandbits(64):016x}",'
            f'"time":"2026-11-27T09:{index % 60:02}:{chosen.randrange(60):02}Z",'
            f'"event":"{chosen.choice(("click", "order", "visit"))}",'
            f'"url":"https://example.org/{chosen.randrange(1000):03}",'
            f'"geo":{{"country":"{chosen.choice(("de", "fr", "us"))}"}},'
            f'"price":{chosen.randrange(100, 1000)}.25,"ok":{chosen.choice(("true", "null"))},'
            '"text":""}'
        )
        rest = f"{chosen.getrandbits(1024):0256x}"[: self.payload_bytes - len(frame)]
        return frame.replace('""', f'"{rest}"')


_ONE: Final = Events("one payload of 250 bytes a POST", 1, 250, bodies=1000)
_HUNDRED: Final = Events("100 payloads of 250 bytes a POST", 100, 250, bodies=100)


@dataclass(frozen=True, slots=True)
class Beside:
    """Results of small POSTs while a daemon stores many payloads."""

    peer: str
    small: Load
    large: Load
    """Those of 100 payloads a POST, at the same time."""


async def formats(
    connections: int, seconds: int, rounds: int, report: Callable[[str], object]
) -> list[Section]:
    """Measure both formats in turn, ``rounds`` times."""
    costs: dict[str, list[tuple[Result, Result]]] = {}
    beside: list[tuple[Beside, Beside]] = []
    for number in range(1, rounds + 1):
        for work in (_ONE, _HUNDRED):
            drive = Drive(connections, seconds)
            zstd, parquet = [await _cost(peer, work, drive) for peer in (_zstd, _parquet)]
            costs.setdefault(work.name, []).append((zstd, parquet))
            report(
                f"{work.name}, round {number}: {zstd.cpu_us:.1f} and {parquet.cpu_us:.1f} µs"
                " a payload"
            )
        both = await _beside(_zstd, seconds), await _beside(_parquet, seconds)
        beside.append(both)
        p99s = [one.small.p99 / 1000 for one in both]
        report(f"small POSTs, round {number}: p99 {p99s[0]:.1f} and {p99s[1]:.1f} ms")
    return [_section_of_costs(costs), _section_of_small(beside)]


def _zstd(folder: Path) -> Peer:
    """Return the daemon with NDJSON.zst; nothing of it is in ``folder``."""
    del folder
    return payloadd("NDJSON.zst", BATCH_MAX_PAYLOADS="10000", COMPRESSION="zstd")


def _parquet(folder: Path) -> Peer:
    """Return the daemon with Parquet, whose schema is put into ``folder``."""
    schema = folder / "schema"
    schema.write_text(COLUMNS)
    return payloadd(
        "Parquet",
        BATCH_MAX_PAYLOADS="10000",
        OBJECT_FORMAT="parquet",
        PARQUET_SCHEMA=str(schema),
    )


async def _cost(peer: Callable[[Path], Peer], work: Work, drive: Drive) -> Result:
    with tempfile.TemporaryDirectory(prefix="payloadd-bench-") as name:
        return await measure(peer(Path(name)), work, drive, Path(name), compressed=True)


async def _beside(peer: Callable[[Path], Peer], seconds: int) -> Beside:
    """Measure small POSTs while others with 100 payloads keep the encoder at work."""
    loads: dict[str, Load] = {}

    async def run(name: str, url: str, work: Work, drive: Drive) -> None:
        (folder / name).mkdir()
        loads[name] = await run_wrk(url, work, replace(drive, seconds=seconds), folder / name)

    with tempfile.TemporaryDirectory(prefix="payloadd-bench-") as temporary:
        folder = Path(temporary)
        measured = peer(folder)
        async with sink(folder, None) as store, measured.start(folder, store) as running:
            await post_once(running.url, _HUNDRED.body())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, "large", running.url, _HUNDRED, _MANY)
                nursery.start_soon(run, "small", running.url, _ONE, _FEW)
            small, large = loads["small"], loads["large"]
            answered = (large.answers - large.refused) * _HUNDRED.payloads_per_post
            await settled(store, answered + small.answers - small.refused)
    return Beside(measured.name, small, large)


def _section_of_costs(costs: dict[str, list[tuple[Result, Result]]]) -> Section:
    more = {
        work: difference([two for _, two in rounds], [one for one, _ in rounds])
        for work, rounds in costs.items()
    }
    found = "; ".join(f"{work}: {cost:.1f} µs" for work, cost in more.items())
    return Section(
        "Parquet beside NDJSON.zst",
        "payloadd, batches of 10,000; Parquet has eight columns, and the payload as text. CPU of"
        " the daemon and of the process that encodes, from the first POST until the last payload"
        f" is stored. What Parquet costs more a payload: {found} (goal: at most {_GOAL_US:.0f} µs;"
        f" medians of the differences within a round).",
        [
            _row_of_costs(runs)
            for rounds in costs.values()
            for runs in ([one for one, _ in rounds], [two for _, two in rounds])
        ],
        [
            asdict(one) | {"cpu_us": one.cpu_us}
            for rounds in costs.values()
            for both in rounds
            for one in both
        ],
    )


def _row_of_costs(runs: Sequence[Result]) -> dict[str, str]:
    costs = [one.cpu_us for one in runs]
    encoding = median(one.children_cpu_seconds * 1e6 / one.stored for one in runs)
    return {
        "format": runs[0].peer,
        "requests": runs[0].work.name,
        "CPU µs a payload": f"{median(costs):.1f}",
        "least - most": f"{min(costs):.1f} - {max(costs):.1f}",
        "of it by the encoder": f"{encoding:.1f}",
        "payloads a second": f"{median(one.stored / one.seconds for one in runs):.0f}",
        "payloads an object": f"{median(one.stored / one.objects for one in runs):.0f}",
        "p99 ms": f"{median(one.load.p99 for one in runs) / 1000:.1f}",
        "peak RSS MiB": f"{max(one.peak_rss for one in runs) / 2**20:.0f}",
        "not 2xx": str(sum(one.load.refused + one.load.broken for one in runs)),
    }


def _section_of_small(beside: Sequence[tuple[Beside, Beside]]) -> Section:
    p99 = median(parquet.small.p99 for _, parquet in beside) / 1000
    return Section(
        "Small POSTs beside Parquet",
        "payloadd as above; one payload a POST, while other connections send 100 a POST, at the"
        f" rates below. With Parquet the 99th percentile of the small ones is {p99:.1f} ms (goal:"
        f" below {_GOAL_MS:.0f} ms; the median of {len(beside)} rounds).",
        [
            _row_of_small([one for one, _ in beside]),
            _row_of_small([two for _, two in beside]),
        ],
        [asdict(one) for both in beside for one in both],
    )


def _row_of_small(runs: Sequence[Beside]) -> dict[str, str]:
    payloads = median(one.large.rate for one in runs) * _HUNDRED.payloads_per_post
    small, large = [one.small for one in runs], [one.large for one in runs]
    return {
        "format": runs[0].peer,
        "payloads a second": f"{payloads:.0f}",
        "small POSTs a second": f"{median(one.rate for one in small):.0f}",
        "p50 ms": f"{median(one.p50 for one in small) / 1000:.1f}",
        "p99 ms": f"{median(one.p99 for one in small) / 1000:.1f}",
        "p99 of the others, ms": f"{median(one.p99 for one in large) / 1000:.1f}",
        "not 2xx": str(sum(one.refused + one.broken for one in (*small, *large))),
    }
