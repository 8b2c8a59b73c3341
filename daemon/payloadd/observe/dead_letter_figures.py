"""The dead letters by stream and reason, read from the journal while the status page is open."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import trio

from payloadd.errors import PayloaddError
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from payloadd.observe.status import DeadLetterGroup

log = get_logger(__name__)

_PAUSE: Final = 10.0
"""Seconds between two reads: each visits all dead letters."""
_LONGEST_WAIT: Final = 0.5
"""Seconds that a request waits for a read."""


class DeadLetterFigures:
    """The last groups that were read. A read begins when a request asks for them."""

    def __init__(self, read: Callable[[], Sequence[DeadLetterGroup]]) -> None:
        """``read`` reads the journal, in a thread; it may raise PayloaddError."""
        self._read = read
        self._wanted = trio.Event()
        self._read_once_more = trio.Event()
        self._read_at = -math.inf
        self.groups: Sequence[DeadLetterGroup] | None = None
        """None before the first read."""

    async def run(self) -> None:
        """Read when the groups are wanted, at most every ten seconds, without end."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            try:
                self.groups = await trio.to_thread.run_sync(self._read)
            except PayloaddError as error:
                log.debug("dead_letters_not_read", reason=str(error))
            self._read_at = trio.current_time()
            self._read_once_more.set()
            self._read_once_more = trio.Event()
            await trio.sleep(_PAUSE)

    async def refresh(self) -> None:
        """Have the groups read if they are ten seconds old, and wait for that half a second."""
        if trio.current_time() < self._read_at + _PAUSE:
            return
        done = self._read_once_more
        self._wanted.set()
        with trio.move_on_after(_LONGEST_WAIT):
            await done.wait()
