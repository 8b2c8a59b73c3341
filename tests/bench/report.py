"""The figures of a run, and the table that shows them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.load import Load, Work
    from tests.bench.peers import Counts


@dataclass(frozen=True, slots=True)
class Result:
    """What one peer took for one load."""

    peer: str
    work: Work
    load: Load
    counts: Counts
    cpu_seconds: float
    """User and system time of its process tree, from the first POST to the last stored payload."""
    peak_rss: int
    """Bytes."""
    puts: int
    """Requests that the store answered."""
    seconds: float
    """From the first POST to the last stored payload."""

    @property
    def cpu_us(self) -> float:
        """CPU microseconds a stored payload; what refusals cost is part of it."""
        return self.cpu_seconds * 1e6 / max(self.counts.stored, 1)

    def figures(self) -> dict[str, object]:
        """Return everything that is known, for machines."""
        return {**asdict(self), "cpu_us": self.cpu_us}


def table(results: Sequence[Result]) -> str:
    """Return a Markdown table, a row a result."""
    columns = [_row(result) for result in results]
    names = list(columns[0])
    lines = [
        "| " + " | ".join(names) + " |",
        "|" + "|".join("---" if name == names[0] else "---:" for name in names) + "|",
        *("| " + " | ".join(column.values()) + " |" for column in columns),
    ]
    return "\n".join(lines) + "\n"


def _row(result: Result) -> dict[str, str]:
    load, work, counts = result.load, result.work, result.counts
    return {
        "daemon": result.peer,
        "connections": str(work.connections),
        "payloads a POST": str(work.payloads_per_post),
        "bytes": str(work.payload_bytes),
        "CPU µs a payload": f"{result.cpu_us:.1f}",
        "peak RSS MiB": f"{result.peak_rss / 2**20:.0f}",
        "p50 ms": f"{load.p50 / 1000:.1f}",
        "p99 ms": f"{load.p99 / 1000:.1f}",
        "accepted/s": f"{counts.accepted / load.seconds:.0f}",
        "stored/s": f"{counts.stored / result.seconds:.0f}",
        "accepted": str(counts.accepted),
        "stored": str(counts.stored),
        "given up": str(counts.given_up),
        "PUTs": str(result.puts),
        "answers not 2xx": str(load.refused),
        "broken": str(load.broken),
    }
