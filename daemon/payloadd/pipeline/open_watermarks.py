"""The watermarks of a process, as the settings and the journal want them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from payloadd.pipeline.in_flight import Uncounted
from payloadd.pipeline.lane_watermarks import SharedWatermarks
from payloadd.pipeline.watermark_file import WatermarkFile
from payloadd.pipeline.watermarks import Watermarks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    import trio

    from payloadd.config.settings import Settings
    from payloadd.journal.api import SharedLanes
    from payloadd.observe.status import DeadLetterGroup
    from payloadd.pipeline.accounting import Accounting
    from payloadd.storage.api import Store


class NoWatermarks:
    """The watermarks of a process with ``WATERMARK=off``."""

    def __init__(self) -> None:
        self.in_flight = Uncounted()
        """Has the source of ids, and counts nothing."""

    def written(self, stop: trio.Event) -> AbstractAsyncContextManager[None]:
        """Write nothing."""
        del stop
        return nullcontext()


def watermarks_of(
    settings: Settings,
    accounting: Accounting,
    dead_letters: Callable[[int | None], Sequence[DeadLetterGroup]],
    store: Store,
    names: Mapping[int, str],
    pulse: Callable[[], Awaitable[None]],
    lanes: SharedLanes[Any] | None = None,
) -> Watermarks | SharedWatermarks | NoWatermarks:
    """Return the watermarks of the process. Blocks, for a small file. Raises StartError.

    ``lanes`` are those of a shared journal. ``dead_letters`` reads those of a lane, or all.
    ``pulse`` is that of the journal.
    """
    if settings.watermark == "off":
        return NoWatermarks()
    if lanes is not None:
        return SharedWatermarks(settings, accounting, dead_letters, store, lanes, pulse)
    file = WatermarkFile(settings.state_dir)
    of_all = partial(dead_letters, None)
    return Watermarks(settings, file, accounting, of_all, store, names, pulse)
