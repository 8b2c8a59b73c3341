"""The comparison as a picture: a panel a work, a bar a peer."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Final

from tests.bench.report import per_work

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.bench.measure import Result

_OURS: Final = "#1f6f8b"
_THEIRS: Final = "#b8b8b8"


def draw(results: Sequence[Result], path: Path) -> None:
    """Write a PNG; ImportError without matplotlib."""
    # Only here: it takes a second to load and is not needed for the figures.
    from matplotlib.figure import Figure  # noqa: PLC0415

    works = per_work(results)
    height = 1 + sum(0.9 + 0.36 * len(peers) for peers in works.values())
    figure = Figure(figsize=(9, height), layout="constrained")
    panels = figure.subplots(len(works), squeeze=False)[:, 0]
    for panel, (work, peers) in zip(panels, works.items(), strict=True):
        names = list(peers)
        costs = [[one.cpu_us for one in rounds] for rounds in peers.values()]
        middles = [median(cost) for cost in costs]
        spread = [
            [middle - min(cost) for middle, cost in zip(middles, costs, strict=True)],
            [max(cost) - middle for middle, cost in zip(middles, costs, strict=True)],
        ]
        colours = [_OURS if name.startswith("payloadd") else _THEIRS for name in names]
        bars = panel.barh(names, middles, xerr=spread, color=colours, ecolor="#444444")
        panel.bar_label(bars, [f"{middle:.3g}" for middle in middles], padding=6)
        panel.invert_yaxis()
        panel.set_xscale("log")
        panel.margins(x=0.15)
        panel.set_title(work, loc="left")
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel(
        "CPU µs a payload, from the POST to the store (log scale; less is better)"
    )
    figure.savefig(path, dpi=120)
