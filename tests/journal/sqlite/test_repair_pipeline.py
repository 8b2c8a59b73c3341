"""Damage of a page during uploads, in the whole pipeline from the journal to the store."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio

from payloadd.config import settings as config
from payloadd.journal.open import open_journal
from payloadd.journal.sqlite.damage import CODE
from payloadd.journal.sqlite.journal import SqliteJournal
from payloadd.journal.sqlite.offline import Inspection
from payloadd.observe.health import Health
from payloadd.observe.metrics import Metrics
from payloadd.pipeline.accounting import Accounting
from payloadd.pipeline.batching import Batcher
from payloadd.pipeline.dispatcher import dispatch
from payloadd.pipeline.listener import PipelineListener
from payloadd.pipeline.queue import JobChannel
from payloadd.pipeline.refill import QueueFeeder
from payloadd.pipeline.worker import Worker
from tests.journal.sqlite.damaging import lose_pages, repair_without_pause, verified
from tests.support.inert_store import InertStore
from tests.support.journal import TEST_TIMEOUT, append, id_of, until

if TYPE_CHECKING:
    from pathlib import Path

    from payloadd.journal.api import Journal
    from payloadd.model.formats.api import EncodedObject
    from payloadd.model.job import Members

_COUNT = 1000


class GatedStore(InertStore):
    """A store in memory whose uploads wait until its gate is open."""

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.waiting = 0
        self.lines: Counter[bytes] = Counter()

    async def put(self, key: str, body: EncodedObject, members: Members, *, repeat: bool) -> None:
        """Store an object, once the gate is open."""
        del key, members, repeat
        self.waiting += 1
        await self.gate.wait()
        self.lines.update(b"".join(body.pieces).splitlines())


async def accept(journal: Journal, number: int, count: int) -> None:
    """Append a request of ``count`` jobs and wait until it is durable."""
    durable = trio.Event()
    wanted = append(number, count=count)
    journal.append(wanted.receipt, wanted.parts, None, lambda _: durable.set())
    await durable.wait()


@pytest.mark.parametrize("most", [1, 20], ids=["alone", "batched"])
async def test_every_payload_is_stored_once_or_reported(path: Path, most: int) -> None:
    """Batches of workers would be stored, listed as DAMAGED, and make the totals negative."""
    environ = {"STATE_DIR": str(path.parent), "BATCH_MAX_PAYLOADS": str(most)}
    settings = config.load({**environ, "BATCH_LINGER": "10ms", "MAX_WORKERS": "8"})
    health, metrics, store = Health(), Metrics(), GatedStore()
    accounting, channel = Accounting(metrics), JobChannel(300, 10**6)
    feeder = QueueFeeder(channel, accounting)
    listener = PipelineListener(channel, feeder, accounting, metrics)
    opening = open_journal(settings, listener, health, metrics)
    with trio.fail_after(TEST_TIMEOUT):
        async with opening as opened, trio.open_nursery() as nursery:
            journal = opened.journal
            assert isinstance(journal, SqliteJournal)
            database = journal._database
            repair_without_pause(database)
            worker = Worker(store, journal, accounting, health, metrics, channel, settings)
            batcher = Batcher(channel, opened.layouts, settings, worker.admission, feeder)
            await nursery.start(feeder.refill, journal)
            await nursery.start(dispatch, batcher, worker)
            for number in range(1, _COUNT, 100):
                await accept(journal, number, 100)
            await until(lambda: store.waiting == 8)
            assert lose_pages(database, path, map(id_of, (1, 100, 250, 600, _COUNT))) > 3
            store.gate.set()
            await accept(journal, _COUNT + 1, 1)
            await until(lambda: accounting.open == 0)
            feeder.finish()
        assert (accounting.journaled, accounting.lost) == (0, 0)
    assert set(store.lines.values()) == {1}
    with Inspection.open(path.parent) as inspection:
        letters = inspection.dead()
        assert {one.code for one in letters} == {CODE}
        missing = sum(one.payloads for one in letters)
        assert inspection.status().payloads == 0
    assert 0 < missing == accounting.dead == _COUNT + 1 - len(store.lines)
    assert missing < _COUNT - 300
    assert {one.table for one in verified(path)} == {"dead"}
