"""Plot the comparison: a panel per work, a dot per peer, a line from its minimum to its maximum."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Final

from tests.bench.report import per_work

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.bench.measure import Result

_OURS: Final = "#1f6f8b"
_THEIRS: Final = "#8a8a8a"


def draw(results: Sequence[Result], path: Path) -> None:
    """Write a PNG; ImportError without matplotlib."""
    # Imported here: it loads slowly and is not needed for the figures.
    from matplotlib.figure import Figure  # noqa: PLC0415

    works = per_work(results)
    height = 1 + sum(0.7 + 0.3 * len(peers) for peers in works.values())
    figure = Figure(figsize=(9, height), layout="constrained")
    panels = figure.subplots(len(works), sharex=True, squeeze=False)[:, 0]
    for panel, (work, peers) in zip(panels, works.items(), strict=True):
        for row, (name, rounds) in enumerate(peers.items()):
            costs = [one.cpu_us for one in rounds]
            colour = _OURS if name.startswith("payloadd") else _THEIRS
            panel.hlines(row, min(costs), max(costs), colour, linewidth=2)
            # Dots instead of bars, whose length has no meaning on a logarithmic scale.
            panel.plot(median(costs), row, "o", color=colour, markersize=8)
            place = (max(costs), row)
            panel.annotate(
                _figure(median(costs)), place, (9, 0), textcoords="offset points", va="center"
            )
        panel.set_yticks(range(len(peers)), list(peers))
        panel.set_ylim(len(peers) - 0.5, -0.5)
        panel.set_xscale("log")
        panel.set_title(work, loc="left", fontweight="bold")
        panel.grid(axis="x", color="#dddddd")
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].margins(x=0.12)
    panels[-1].xaxis.set_major_formatter("{x:,g}")
    panels[-1].set_xlabel(
        "CPU µs a payload, from the POST to the store (log scale; less is better)"
    )
    figure.savefig(path, dpi=120)


def _figure(cost: float) -> str:
    digits = 0 if cost >= 100 else 1  # a reader of a plot needs three digits
    return f"{cost:,.{digits}f}"
