"""Measure how the daemon starts on a journal of a million jobs and stores them in batches."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from payloadd.journal.api import Receipt
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.operations import Append
from payloadd.journal.sqlite.schema import FILE
from payloadd.model.job import IdSource, Part
from payloadd.model.layout import Layout
from tests.bench.load import Work
from tests.bench.measure import settled
from tests.bench.peers.payloadd import BATCHES, SETTINGS
from tests.bench.report import MIB, Section
from tests.bench.sink import sink
from tests.support import proc
from tests.support.daemon import START_WITHIN, started

if TYPE_CHECKING:
    from collections.abc import Callable

_TEMPLATE: Final = "{date}/{hour}/{id}.ndjson"
_JOBS_A_COMMIT: Final = 20_000


@dataclass(frozen=True, slots=True)
class Drained:
    """Time, CPU and memory that the daemon needed for a backlog."""

    jobs: int
    ready: float
    """Seconds from the start of the process until it listens."""
    seconds: float
    """From the start of the process until the last payload was stored."""
    cpu_seconds: float
    """CPU time of the process, with its start."""
    peak_rss: int
    """Bytes."""


async def backlog(
    jobs: int, rounds: int, report: Callable[[str], object], payload_bytes: int = 100
) -> Section:
    """Fill a journal and measure how the daemon drains it, ``rounds`` times."""
    work = Work("backlog", 1, payload_bytes)
    found = []
    for number in range(1, rounds + 1):
        with tempfile.TemporaryDirectory(prefix="payloadd-bench-") as name:
            folder = Path(name)
            fill(folder / "state", jobs, work.payload(0).encode())
            found.append(await _drain(folder, jobs, payload_bytes))
            report(f"backlog, round {number}: {found[-1]}")
    return Section(
        f"A backlog of {jobs:,} jobs",
        f"payloadd starts on a journal with {jobs:,} jobs of one payload of {payload_bytes} bytes"
        " and drains it in batches of 1,000. CPU and memory are those of the whole process,"
        " from its start to the last payload.",
        [_row(drained) for drained in found],
        [asdict(drained) for drained in found],
    )


def fill(folder: Path, jobs: int, payload: bytes) -> None:
    """Write a journal with ``jobs`` jobs of one payload, as the daemon writes them."""
    folder.mkdir()
    database = Database(folder / FILE)
    try:
        # The layout of the settings in ``_drain``; without a layout jobs are not replayed.
        database.layouts(Layout(_TEMPLATE, "", "none", alone=False))
        ids = IdSource()
        for first in range(0, jobs, _JOBS_A_COMMIT):
            count = min(_JOBS_A_COMMIT, jobs - first)
            parts = [Part(id_, payload + b"\n", 1) for id_ in ids.new_ids(count)]
            database.commit([Append(Receipt(parts[0].id, count), parts)])
    finally:
        database.close()


async def _drain(folder: Path, jobs: int, payload_bytes: int) -> Drained:
    async with sink(folder, payload_bytes) as store:
        env = {
            **SETTINGS,
            **BATCHES,
            **store.environ,
            "KEY_TEMPLATE": _TEMPLATE,
            "STATE_DIR": str(folder / "state"),
        }
        start = trio.current_time()
        async with started(folder, env) as daemon:
            await daemon.wait_for_event("listening", START_WITHIN)
            ready = trio.current_time() - start
            stored, at = await settled(store, jobs)
            assert stored == jobs, f"{stored} payloads in the store of {jobs} in the journal"
            assert (await daemon.metrics())["payloadd_journal_jobs"] == 0
            return Drained(
                jobs=jobs,
                ready=ready,
                seconds=at - start,
                cpu_seconds=proc.cpu_seconds(daemon.pid),
                peak_rss=daemon.peak_rss(),
            )


def _row(drained: Drained) -> dict[str, str]:
    return {
        "ready after": f"{drained.ready:.2f} s",
        "payloads a CPU second": f"{drained.jobs / drained.cpu_seconds:,.0f}",
        "payloads a second": f"{drained.jobs / drained.seconds:,.0f}",
        "peak RSS MiB": f"{drained.peak_rss / MIB:.0f}",
    }
