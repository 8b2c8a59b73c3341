"""The figures of a run as Markdown."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tests.bench.measure import Result
    from tests.bench.peers.peer import Peer

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, a description, and a table."""

    title: str
    about: str
    rows: Sequence[Mapping[str, str]]
    figures: Any = field(repr=False)
    """All figures, for figures.json."""

    def markdown(self) -> str:
        """Return the section as Markdown."""
        return f"## {self.title}\n\n{self.about}\n\n{table(self.rows)}"


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a Markdown table with the columns of the first row; numbers are aligned right."""
    names = list(rows[0])
    sides = ["---:" if rows[0][name][:1].isdigit() else "---" for name in names]
    lines = [
        "| " + " | ".join(names) + " |",
        "|" + "|".join(sides) + "|",
        *("| " + " | ".join(row.values()) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def per_work(results: Sequence[Result]) -> dict[str, dict[str, list[Result]]]:
    """Return the rounds of each peer by work, in the order of their first run."""
    found: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        found.setdefault(result.work.name, {}).setdefault(result.peer, []).append(result)
    return found


def comparison_row(peer: Peer, rounds: Sequence[Result], base: Sequence[Result]) -> dict[str, str]:
    """Return the medians of a peer's rounds; ``base`` are the rounds that it is compared with."""
    costs = [result.cpu_us for result in rounds]
    return {
        "daemon": peer.name,
        "an answer means": peer.promise,
        "CPU µs a payload": f"{median(costs):.1f}",
        "least - most": f"{min(costs):.1f} - {max(costs):.1f}",
        "ratio to Go": f"{ratio(rounds, base):.2f}" if base else "",
        "MiB a CPU second": f"{median(_mib_a_cpu_second(one) for one in rounds):.3g}",
        "payloads an object": f"{median(one.stored / one.objects for one in rounds):.0f}",
        "p50 ms": f"{median(one.load.p50 for one in rounds) / 1000:.1f}",
        "p99 ms": f"{median(one.load.p99 for one in rounds) / 1000:.1f}",
        "peak RSS MiB": f"{max(one.peak_rss for one in rounds) / MIB:.0f}",
        "payloads checked": str(sum(one.stored for one in rounds)),
        "not 2xx": str(sum(one.load.refused + one.load.broken for one in rounds)),
    }


def ratio(rounds: Sequence[Result], base: Sequence[Result]) -> float:
    """Return the median of the ratios of two figures of the same round."""
    return median(one.cpu_us / other.cpu_us for one, other in zip(rounds, base, strict=True))


def difference(rounds: Sequence[Result], base: Sequence[Result]) -> float:
    """Return the median difference of two figures of the same round, in microseconds."""
    return median(one.cpu_us - other.cpu_us for one, other in zip(rounds, base, strict=True))


def document(sections: Sequence[Section], loads: Sequence[float]) -> str:
    """Return all sections as one document; ``loads`` are load averages of the machine."""
    shown = ", ".join(f"{load:.1f}" for load in loads)
    head = (
        f"{os.cpu_count()} cores; Python {platform.python_version()}; Linux {platform.release()};"
        f" load average before each part: {shown}. Figures of one system move by a factor of two"
        " with what else the machine does; the ratio within a round moves less.\n"
    )
    return "\n".join(["# What a payload costs\n", head, *(one.markdown() for one in sections)])


def _mib_a_cpu_second(result: Result) -> float:
    return result.stored * result.work.payload_bytes / MIB / result.cpu_seconds
