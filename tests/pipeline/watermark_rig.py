"""Watermarks with a store in memory, and a journal that reports what the test sets."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import trio

from payloadd.config.settings import load
from payloadd.errors import OperatorStoreError
from payloadd.observe.metrics import Metrics
from payloadd.pipeline.accounting import Accounting, OldestJobs
from payloadd.pipeline.watermark_file import WatermarkFile
from payloadd.pipeline.watermarks import Watermarks
from tests.support.inert_store import InertStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from payloadd.model.formats.api import EncodedObject
    from payloadd.model.job import AscendingIds
    from payloadd.observe.status import DeadLetterGroup

NAMES: Final = {0: "default", 3: "clicks"}
START: Final = 1_764_235_800_000
"""The clock at the start of a test, in milliseconds."""


@dataclass
class KeptObjects(InertStore):
    """A store that keeps what it is given; it fails while ``fault`` is set."""

    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    puts: int = 0
    fault: bool = False

    async def put(self, key: str, body: EncodedObject, members: object, *, repeat: bool) -> None:
        """Fail: watermarks are no batches."""
        raise NotImplementedError

    async def replace(self, key: str, body: EncodedObject) -> None:
        """Keep the object."""
        await trio.lowlevel.checkpoint()
        if self.fault:
            raise OperatorStoreError("AccessDenied", "")
        self.puts += 1
        self.objects[key.split("/")[1]] = json.loads(b"".join(body.pieces))

    def until(self, stream: str = "default") -> int:
        """Return the watermark of a stream in milliseconds since the start of the test."""
        moment = datetime.fromisoformat(self.objects[stream]["complete_until"])
        return round(moment.timestamp() * 1000) - START


class Rig:
    """Watermarks with a store in memory, and a journal that reports what the test sets."""

    def __init__(self, folder: Path, names: dict[int, str] = NAMES) -> None:
        self.accounting = Accounting(Metrics())
        self.store = KeptObjects()
        self.oldest: dict[int, tuple[int, int]] = {}
        self.dead: list[DeadLetterGroup] = []
        self.waiting: list[DeadLetterGroup] = []
        """Dead letters that the next commit writes."""
        self.stop = trio.Event()
        parts = (self.accounting, lambda: self.dead, self.store, names, self.pulse)
        self.watermarks = Watermarks(load({}), WatermarkFile(folder), *parts)

    async def pulse(self) -> None:
        """Commit."""
        await trio.lowlevel.checkpoint()
        self.dead += self.waiting

    @property
    def ids(self) -> AscendingIds:
        """The source of the ids of requests."""
        return self.watermarks.in_flight.ids

    @asynccontextmanager
    async def written(self) -> AsyncIterator[None]:
        """Write watermarks and report the oldest jobs, until the body ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.report)
            async with self.watermarks.written(self.stop):
                yield
            nursery.cancel_scope.cancel()

    async def report(self) -> None:
        """Report the oldest jobs once a second, as they were a second ago."""
        await trio.sleep(0.5)
        while True:
            found = dict(self.oldest)
            await trio.sleep(1)
            number = self.accounting.oldest_jobs.number + 1
            self.accounting.oldest_jobs = OldestJobs(found, number)


@contextmanager
def ids_follow_trio() -> Iterator[None]:
    """Let the time of ids be that of trio's clock, which a test moves."""

    def now() -> int:
        try:
            return START * 1_000_000 + round(trio.current_time() * 1e9)
        except RuntimeError:
            return START * 1_000_000

    async def in_loop(work: Callable[[], object]) -> object:
        # The clock would jump while a thread works.
        await trio.lowlevel.checkpoint()
        return work()

    with patch("time.time_ns", now), patch("trio.to_thread.run_sync", in_loop):
        yield
