"""What came of one kind of hostile clients, and how it compares with the goals."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from tests.bench.report import MIB

P99: Final = 0.050
"""Seconds."""
LONGEST: Final = 0.250
WITHOUT_SLOT: Final = 1.0
"""Seconds that take the place of both where honest clients wait for a slot."""
WATCHDOG: Final = 10.0
"""Seconds between two signs of life that systemd is told to expect."""
PEAK_RSS: Final = (256 + 64 + 150) * MIB
"""MAX_REQUEST_BYTES and MAX_QUEUE_BYTES, and what the process itself takes."""
RSS_AFTER: Final = 150 * MIB
ACCEPTED: Final = "202"

Sample = tuple[float, float, str]
"""When a POST was sent, how long its answer took, in seconds, and what it was."""


@dataclass(frozen=True, slots=True)
class Times:
    """From when to when there were hostile clients, and when the measurement ended."""

    begin: float
    end: float
    over: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds and bytes."""

    kind: str
    batches: str
    honest: dict[str, int]
    """Answers to the POSTs of honest clients that were sent while there were hostile ones."""
    p50: float
    p99: float
    longest: float
    """Of those, and of the POSTs up to the end of the measurement."""
    quiet_p99: float
    """Before there were hostile clients."""
    watchdog_gap: float
    peak_rss: int
    rss_after: int
    cpu_seconds: float
    """Of the daemon's processes, while there were hostile clients."""
    load_cpu_seconds: float
    honest_cpu_seconds: float
    tally: dict[str, int]
    """What the hostile clients got."""
    disk_errors: int
    """Answers to all clients."""
    errors: dict[str, int]
    """Events of the daemon's log at level error."""
    ended: bool
    """Whether the daemon ended by itself."""
    more_than_slots: bool = False
    """Whether there were more connections than slots."""

    def missed(self) -> list[str]:
        """Return the names of the goals that were not reached."""
        goals = {
            "p99": self.p99 <= (WITHOUT_SLOT if self.more_than_slots else P99),
            "max": self.longest <= (WITHOUT_SLOT if self.more_than_slots else LONGEST),
            "watchdog": self.watchdog_gap <= WATCHDOG,
            "peak": self.peak_rss <= PEAK_RSS,
            "RSS after": self.rss_after < RSS_AFTER,
            "refused": set(self.honest) == {ACCEPTED},
            "DISK_ERROR": not self.disk_errors,
            "alive": not self.ended,
        }
        return [name for name, reached in goals.items() if not reached]

    def row(self) -> dict[str, str]:
        """Return the line of the table."""
        others = {name: count for name, count in self.honest.items() if name != ACCEPTED}
        return {
            "kind": self.kind,
            "batches": self.batches,
            "202": str(self.honest.get(ACCEPTED, 0)),
            "other answers": _shown(others),
            "p50 ms": f"{self.p50 * 1000:.1f}",
            "p99 ms": f"{self.p99 * 1000:.1f}",
            "max ms": f"{self.longest * 1000:.0f}",
            "p99 alone": f"{self.quiet_p99 * 1000:.1f}",
            "watchdog s": f"{self.watchdog_gap:.1f}",
            "peak MiB": f"{self.peak_rss / MIB:.0f}",
            "MiB after": f"{self.rss_after / MIB:.0f}",
            "CPU s": f"{self.cpu_seconds:.1f}",
            "CPU s of load": f"{self.load_cpu_seconds:.1f} + {self.honest_cpu_seconds:.1f}",
            "DISK_ERROR": str(self.disk_errors),
            "hostile clients got": _shown(self.tally),
            "goals missed": ", ".join(self.missed()) or "none",
        }


def latencies(samples: list[Sample], times: Times) -> tuple[list[Sample], list[float], float]:
    """Return the POSTs beside hostile clients, and their and the sorted times, and the longest.

    A POST sent before them that was answered after they began waited for them as well.
    """
    beside = [
        sample
        for sample in samples
        if sample[0] < times.end and sample[0] + sample[1] > times.begin
    ]
    longest = max(sample[1] for sample in samples if sample[0] + sample[1] > times.begin)
    return beside, sorted(sample[1] for sample in beside), longest


def percentile(values: list[float], share: float) -> float:
    """Return the value that ``share`` of the sorted ``values`` do not exceed."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


def longest_gap(beats: list[float], times: Times) -> float:
    """Return the longest time without a sign of life, up to the end of the measurement."""
    before = [beat for beat in beats if beat <= times.begin]
    since = [beat for beat in beats if times.begin < beat < times.over]
    moments = [before[-1] if before else times.begin, *since, times.over]
    return max(later - earlier for earlier, later in pairwise(moments))


def count_disk_errors(*tallies: dict[str, int]) -> int:
    """Return how many answers said that the disk failed."""
    total: Counter[str] = Counter()
    for tally in tallies:
        total.update(tally)
    return sum(count for name, count in total.items() if "DISK_ERROR" in name)


def _shown(tally: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(tally.items()))
