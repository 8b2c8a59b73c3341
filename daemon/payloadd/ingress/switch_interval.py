"""How long the event loop keeps Python's lock from the journal's thread.

A thread that wants the lock gets it when the one that has it waits for something, or when the
switch interval is over: 5 ms. A commit needs the lock some 30 times, so beside an event loop with
work for more than one pass each commit took 0.15 s, and every small request with it. While the loop
is that busy the interval is 1 ms; at other times it is left alone, because to switch more often
costs a request 5 % of its CPU time.
"""

from __future__ import annotations

import sys
from time import perf_counter
from typing import Final

import trio

_SHORT: Final = 0.001
_AFTERWARDS: Final = 1.0
"""Seconds for which the interval stays short behind the last sign of work."""
_LOOK_EVERY: Final = 0.25


class Switching:
    """Keeps the switch interval short while the event loop is busy."""

    def __init__(self) -> None:
        self._usual = sys.getswitchinterval()
        self._last = 0.0
        self._busy = trio.Event()

    def busy(self) -> None:
        """Take note that there is work for more than one pass of the event loop."""
        self._last = perf_counter()
        if not self._busy.is_set():
            sys.setswitchinterval(min(_SHORT, self._usual))
            self._busy.set()

    async def run(self) -> None:
        """Make the interval what it was when the loop is not busy any more, for ever."""
        try:
            while True:
                await self._busy.wait()
                await trio.sleep(_LOOK_EVERY)
                if perf_counter() - self._last > _AFTERWARDS:
                    self._rest()
        finally:
            self._rest()

    def _rest(self) -> None:
        sys.setswitchinterval(self._usual)
        self._busy = trio.Event()
