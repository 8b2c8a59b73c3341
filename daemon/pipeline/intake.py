"""The one door into the pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from daemon.errors import RefusedError, TooLargeError
from daemon.pipeline.job import IdSource, Job

if TYPE_CHECKING:
    import uuid
    from collections.abc import Sequence

    from daemon.health import Health
    from daemon.pipeline.channel import JobChannel
    from daemon.pipeline.ledger import Ledger

_DRAIN_RETRY_AFTER = 5
"""Seconds after which a restarted daemon usually listens again."""


class Intake:
    """Takes requests, whole or not at all."""

    def __init__(self, channel: JobChannel, ledger: Ledger, health: Health) -> None:
        self._channel = channel
        self._ledger = ledger
        self._health = health
        self._ids = IdSource()

    async def accept(self, payloads: Sequence[bytes]) -> uuid.UUID:
        """Take all payloads of one request and return the id that names it: its first job's.

        Raises RefusedError (nothing was taken): QUEUE_FULL, DRAINING; and TooLargeError when
        the request could never be taken, however empty the queue.
        """
        self._check_size(payloads)
        # An empty collection gets an id too, and stores nothing.
        ids = self._ids.take(max(1, len(payloads)))
        jobs = [Job(id_, payload + b"\n", 1) for id_, payload in zip(ids, payloads, strict=False)]
        try:
            self._channel.send_nowait(jobs)
        except trio.WouldBlock:
            raise self._queue_full() from None
        except trio.ClosedResourceError:
            raise _draining() from None
        self._ledger.accept(jobs)
        return ids[0]

    def refusal(self) -> RefusedError | None:
        """Return what a request of one small payload would be refused with now, or None."""
        if self._health.phase == "draining":
            return _draining()
        return None if self._channel.has_room(1, 1) else self._queue_full()

    def _check_size(self, payloads: Sequence[bytes]) -> None:
        limits = (
            (len(payloads), self._channel.max_jobs, "payloads", "MAX_QUEUE"),
            (
                sum(map(len, payloads)) + len(payloads),
                self._channel.max_bytes,
                "bytes",
                "MAX_QUEUE_BYTES",
            ),
        )
        for value, most, unit, setting in limits:
            if value > most:
                raise TooLargeError(
                    f"{value} {unit} in one request; allowed are {most} ({setting})"
                )

    def _queue_full(self) -> RefusedError:
        # Half a queue's time, so that the client finds real room and the workers never run dry.
        retry_after = self._ledger.rate.seconds_for(self._channel.jobs // 2)
        return RefusedError(
            "QUEUE_FULL", "the queue is full; nothing of this request was taken", retry_after
        )


def _draining() -> RefusedError:
    return RefusedError("DRAINING", "the daemon is shutting down", _DRAIN_RETRY_AFTER)
