"""Let fewer workers upload while their work alone makes the turns of the event loop long.

A store that answers within one turn of the event loop has answered all workers by the next one. So
each turn has one upload of every worker, and a request, which needs several turns for its commit,
waits for several uploads of every worker. Fewer workers make shorter turns, and upload as much: the
time that a worker waits for its turn is no time of the store.

Where the store needs longer than a turn, most workers wait for it in each turn, and none is kept
from its work, however long the turns are.
"""

from __future__ import annotations

from time import thread_time
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from payloadd.observe.instruments import CounterValue
    from payloadd.pipeline.idle import IdleWorkers

LEAST: Final = 16
"""Workers that always upload."""
_LONG_TURN: Final = 0.003
"""Seconds of CPU time: on a busy machine fewer workers would not make a turn shorter."""
_INTERVAL: Final = 0.02
"""Seconds between two measurements while many workers have a batch."""
_RAISED: Final = 8
"""With short turns one worker for so many that upload is added at each measurement."""


class UploadPace:
    """Measures turns of the event loop, and says how many workers have to stay idle."""

    def __init__(self, idle: IdleWorkers, stored: CounterValue) -> None:
        """Decide about the workers ``idle``; ``stored`` counts the uploads that have ended."""
        self._idle = idle
        self._stored = stored

    async def run(self) -> None:
        """Measure while many workers have a batch, until cancelled."""
        idle = self._idle
        while True:
            await idle.wait_until_busy(LEAST)
            while idle.busy > LEAST or idle.paced:
                await trio.sleep(_INTERVAL)
                began, stored = thread_time(), self._stored.value
                await trio.lowlevel.checkpoint()
                self.adapt(thread_time() - began, self._stored.value - stored)

    def adapt(self, seconds: float, uploads: float) -> None:
        """Change the number of workers after a turn in which ``uploads`` ended.

        ``seconds`` is the CPU time of the turn.
        """
        idle = self._idle
        most = idle.count - idle.paced
        if seconds > _LONG_TURN and uploads >= LEAST:
            fewer = int(min(most, idle.busy) * max(0.5, _LONG_TURN / seconds))
            idle.paced = max(0, idle.count - max(LEAST, fewer))
        elif idle.paced:
            idle.paced = max(0, idle.paced - most // _RAISED)
            idle.wake()
