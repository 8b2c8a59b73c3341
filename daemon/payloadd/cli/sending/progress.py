"""Report the progress of ``payloadd send``: a bar on a terminal, a line every 10 s elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import click
import trio

from payloadd.escaping import escape_controls
from payloadd.observe import standard_streams

if TYPE_CHECKING:
    from payloadd.cli.sending.client import FileSender

_REDRAW_INTERVAL: Final = 0.25
_LINE_INTERVAL: Final = 10.0
_LONGEST_REASON: Final = 60


async def report(sender: FileSender, total: int | None) -> None:
    """Report until it is cancelled; ``total`` is the bytes of all files, None if unknown."""
    if sys.stderr.isatty():
        await _draw(sender, total)
    else:
        await _write_lines(sender, total)


async def _draw(sender: FileSender, total: int | None) -> None:
    start = trio.current_time()

    def rate(_: object) -> str:
        seconds = max(trio.current_time() - start, 0.001)
        text = f"{sender.accepted:,} payloads, {sender.accepted / seconds:,.0f}/s"
        if sender.waiting_for:
            text += f", waiting: {escape_controls(sender.waiting_for)[:_LONGEST_REASON]}"
        return text

    # Without a total the bar is full from the start, and the rate is what matters.
    length = total or 1
    with click.progressbar(
        length=length,
        item_show_func=rate,
        show_eta=total is not None,
        show_percent=total is not None,
        file=sys.stderr,
    ) as bar:
        try:
            while True:
                await trio.sleep(_REDRAW_INTERVAL)
                bar.update(min(sender.position, length) - bar.pos, "")
        finally:
            bar.update(min(sender.position, length) - bar.pos, "")


async def _write_lines(sender: FileSender, total: int | None) -> None:
    while True:
        before = sender.accepted
        await trio.sleep(_LINE_INTERVAL)
        rate = (sender.accepted - before) / _LINE_INTERVAL
        text = f"accepted {sender.accepted:,} payloads, {rate:,.0f}/s"
        if total:
            text += f", {100 * sender.position / total:.0f} % of the files read"
        if sender.waiting_for:
            text += f"; waiting: {sender.waiting_for}"
        standard_streams.write_line(escape_controls(text), error=True)
