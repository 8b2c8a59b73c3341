"""The whole pipeline around a store in memory that fails on command."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import trio

from payloadd.config import settings as config
from payloadd.errors import OperatorStoreError, TransientStoreError
from payloadd.journal.memory import MemoryJournal
from payloadd.model.layout import Layout, Layouts
from payloadd.model.streams import first_seq
from payloadd.observe.health import Health
from payloadd.observe.metrics import Metrics
from payloadd.pipeline.accounting import Accounting
from payloadd.pipeline.batching import Batcher
from payloadd.pipeline.dispatcher import dispatch
from payloadd.pipeline.intake import Intake
from payloadd.pipeline.listener import PipelineListener
from payloadd.pipeline.queue import JobChannel
from payloadd.pipeline.refill import QueueFeeder
from payloadd.pipeline.worker import Worker
from tests.support.inert_store import InertStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from payloadd.errors import StoreError
    from payloadd.model.formats.api import EncodedObject
    from payloadd.model.job import Members

    Fault = Callable[[int], StoreError | None]


@dataclass
class FaultyStore(InertStore):
    """A store in memory; ``fault(n)`` returns the error of attempt ``n`` (1, 2, ...) at a key."""

    fault: Fault = lambda _: None
    seconds: float = 0.0
    """The time of each attempt."""
    objects: dict[str, bytes] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    """The start of each attempt, by trio's clock."""
    busy: int = 0
    busiest: int = 0
    """The largest number of attempts at the same time."""

    async def put(self, key: str, body: EncodedObject, members: Members, *, repeat: bool) -> None:
        """Keep the object, slowly, or fail."""
        del members, repeat
        self.attempts[key] += 1
        self.times.append(trio.current_time())
        self.busy += 1
        self.busiest = max(self.busiest, self.busy)
        try:
            await trio.sleep(self.seconds)
        finally:
            self.busy -= 1
        error = self.fault(self.attempts[key])
        if error is not None:
            raise error
        self.objects[key] = b"".join(body.pieces)

    async def delete(self, key: str) -> None:
        """Remove the object."""
        del self.objects[key]


class Pipeline:
    """All parts of the pipeline, with a journal in memory, around one store."""

    streams: ClassVar = 1
    """The number of streams; the keys of others than the default one begin with ``s1/``, ..."""
    journal_type: ClassVar[type[MemoryJournal]] = MemoryJournal

    def __init__(self, store: FaultyStore, workers: int = 4, **environ: str) -> None:
        defaults = {
            "KEY_TEMPLATE": "{id}",
            "MAX_WORKERS": str(workers),
            "BATCH_MAX_PAYLOADS": "1",
        }
        settings = config.load(defaults | environ)
        self.store = store
        self.health = Health()
        self.metrics = Metrics(self.health.snapshot)
        self.accounting = Accounting(self.metrics)
        self.channel = JobChannel(settings.max_queue, settings.max_queue_bytes)
        self.feeder = QueueFeeder(self.channel, self.accounting)
        listener = PipelineListener(self.channel, self.feeder, self.accounting, self.metrics)
        self.journal = self.journal_type(listener)
        self.intake = Intake(self.journal, self.health, settings, self.accounting.uploads)
        self.worker = Worker(
            store,
            self.journal,
            self.accounting,
            self.health,
            self.metrics,
            self.channel,
            settings,
        )
        one = Layout.of(settings)
        templates = [one.template, *(f"s{n}/{one.template}" for n in range(1, self.streams))]
        layouts = Layouts(
            [(first_seq(n), replace(one, template=text)) for n, text in enumerate(templates)]
        )
        self.batcher = Batcher(self.channel, layouts, settings, self.worker.admission, self.feeder)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Run the pipeline; after the body the channel is closed and everything is drained."""
        async with trio.open_nursery() as nursery:
            await nursery.start(dispatch, self.batcher, self.worker)
            await nursery.start(self.feeder.refill, self.journal)
            yield
            self.feeder.finish()

    async def drain(self, *requests: list[bytes]) -> None:
        """Accept requests, and return once each payload is stored or dead."""
        async with self.open():
            for payloads in requests:
                await self.intake.accept(payloads)

    def value(self, name: str, **labels: str) -> float:
        """Return a metric."""
        return self.metrics.registry.get_sample_value(f"payloadd_{name}", labels) or 0.0


def first(attempts: int, error: Callable[[], StoreError]) -> Fault:
    """Fail the first ``attempts`` attempts at each key."""
    return lambda n: error() if n <= attempts else None


def forbidden() -> StoreError:
    """Return the error of S3 without the right to write."""
    return OperatorStoreError("AccessDenied", "Access Denied")


def internal_error() -> StoreError:
    """Return the error of S3 during a short failure."""
    return TransientStoreError("InternalError", "We encountered an internal error.")


def slow_down() -> StoreError:
    """Return the error of S3 under load."""
    return TransientStoreError("SlowDown", "Please reduce your request rate.", throttled=True)
