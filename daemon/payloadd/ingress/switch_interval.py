"""Shorten the time for which the event loop keeps Python's lock from the journal's thread.

A thread that wants the lock gets it when the holder waits for something, or when the switch
interval is over: 5 ms by default. A commit acquires the lock many times. So beside an event loop
with work for more than one pass each commit takes long, and every small request with it. The
interval is 1 ms while the event loop is that busy. It is unchanged at other times, because more
frequent switches cost CPU time for each request.
"""

from __future__ import annotations

import sys
from time import perf_counter
from typing import Final

import trio

_SHORT_INTERVAL: Final = 0.001
_AFTERWARDS: Final = 1.0
"""Seconds for which the interval stays short after the last call of ``shorten``."""
_CHECK_EVERY: Final = 0.25


class SwitchInterval:
    """Keeps the switch interval short while the event loop is busy.

    ``afterwards`` and ``check_every`` are in seconds: how long the interval stays short after the
    last call of ``shorten``, and how often that is checked.
    """

    def __init__(self, afterwards: float = _AFTERWARDS, check_every: float = _CHECK_EVERY) -> None:
        self.afterwards = afterwards
        self._check_every = check_every
        self._usual = sys.getswitchinterval()
        self._last = 0.0
        self._shortened = trio.Event()

    def shorten(self) -> None:
        """Shorten the interval: the event loop has work for more than one pass."""
        self._last = perf_counter()
        if not self._shortened.is_set():
            sys.setswitchinterval(min(_SHORT_INTERVAL, self._usual))
            self._shortened.set()

    async def run(self) -> None:
        """Restore the interval whenever the event loop is not busy any more, until cancelled."""
        try:
            while True:
                await self._shortened.wait()
                await trio.sleep(self._check_every)
                if perf_counter() - self._last > self.afterwards:
                    self._restore()
        finally:
            self._restore()

    def _restore(self) -> None:
        sys.setswitchinterval(self._usual)
        self._shortened = trio.Event()
