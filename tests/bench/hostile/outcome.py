"""The results for one kind of hostile clients, compared with the goals."""

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
"""Seconds, the goal instead of both if honest clients wait for a slot."""
WATCHDOG: Final = 10.0
"""Seconds of the watchdog's period."""
PEAK_RSS: Final = (256 + 64 + 150) * MIB
"""MAX_REQUEST_BYTES, MAX_QUEUE_BYTES and the memory of the process itself, in bytes."""
RSS_AFTER: Final = 150 * MIB
ACCEPTED: Final = "202"

Sample = tuple[float, float, str]
"""When a POST was sent, the seconds until its answer, and the answer."""


@dataclass(frozen=True, slots=True)
class Times:
    """Begin and end of the attack, and end of the measurement."""

    begin: float
    end: float
    over: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """Seconds and bytes."""

    kind: str
    batches: str
    honest: dict[str, int]
    """Answers to POSTs of honest clients during the attack."""
    p50: float
    p99: float
    longest: float
    """The longest of these, and of the POSTs until the end of the measurement."""
    quiet_p99: float
    """The 99th percentile before the attack."""
    watchdog_gap: float
    peak_rss: int
    rss_after: int
    cpu_seconds: float
    """CPU time of the daemon's processes during the attack."""
    load_cpu_seconds: float
    honest_cpu_seconds: float
    tally: dict[str, int]
    """Answers to the hostile clients."""
    disk_errors: int
    """Answers with DISK_ERROR to any client."""
    errors: dict[str, int]
    """Events of the daemon's log at level error."""
    ended: bool
    """Whether the daemon ended by itself."""
    more_than_slots: bool = False
    """Whether there were more connections than slots."""

    def missed(self) -> list[str]:
        """Return the names of the goals that were missed."""
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
        """Return the row of the table."""
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
    """Return the POSTs during the attack, their sorted times, and the longest time.

    A POST that was sent before the attack and answered after its begin counts too.
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
    """Return the longest time without WATCHDOG=1, up to the end of the measurement."""
    before = [beat for beat in beats if beat <= times.begin]
    since = [beat for beat in beats if times.begin < beat < times.over]
    moments = [before[-1] if before else times.begin, *since, times.over]
    return max(later - earlier for earlier, later in pairwise(moments))


def count_disk_errors(*tallies: dict[str, int]) -> int:
    """Return the number of answers with DISK_ERROR."""
    total: Counter[str] = Counter()
    for tally in tallies:
        total.update(tally)
    return sum(count for name, count in total.items() if "DISK_ERROR" in name)


def _shown(tally: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in sorted(tally.items()))
