"""The pipeline of DURABILITY=store around a store that fails: what it drops, and when it tries."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import pytest
import trio

from payloadd.config import settings as config
from payloadd.errors import InvalidObjectError, RefusedError
from payloadd.journal.api import Receipt
from payloadd.journal.store import StoreJournal
from payloadd.model.stored_objects import StoredObjects
from payloadd.observe.health import Health
from payloadd.pipeline.intake import Intake
from payloadd.pipeline.unstored import attach_unstored
from tests.pipeline.rig import FaultyStore, Pipeline, first, forbidden, internal_error, slow_down

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from payloadd.journal.api import JournalListener, StoreOutcome
    from payloadd.model.formats.api import EncodedObject
    from payloadd.model.job import Members

_TIMEOUT: Final = 30.0
_BATCHES: Final = {"BATCH_MAX_PAYLOADS": "10", "BATCH_LINGER": "1s"}
_CHECK: Final = "payloadd-check-"


class StorePipeline(Pipeline):
    """All parts of the pipeline with the journal of DURABILITY=store."""

    def __init__(self, store: FaultyStore, workers: int = 4, **environ: str) -> None:
        self.answers: dict[bytes, StoreOutcome] = {}
        self.times: dict[bytes, float] = {}
        health = Health()

        def open_journal(listener: JournalListener) -> StoreJournal:
            return StoreJournal(listener, health, _TIMEOUT)

        self.journal_type = open_journal  # type: ignore[misc,assignment]
        super().__init__(store, workers, **environ)
        # The journal and the worker look at the same troubles.
        self.worker.admission.trouble._health = health
        self.health = health
        assert isinstance(self.journal, StoreJournal)
        self.requests = self.journal
        settings = config.load({"KEY_TEMPLATE": "{id}", "BATCH_MAX_PAYLOADS": "1"} | environ)
        self.intake = Intake(self.journal, health, settings, unstored=self.journal)
        attach_unstored(self.journal, self.batcher, self.worker, store, settings)

    def post(self, *payloads: bytes) -> None:
        """Submit a request; ``answers`` has its outcome by its first payload later."""
        began = trio.current_time()

        def answer(_receipt: Receipt, outcome: StoreOutcome) -> None:
            self.answers[payloads[0]] = outcome
            self.times[payloads[0]] = trio.current_time() - began

        def done(outcome: Receipt | RefusedError) -> None:
            assert isinstance(outcome, Receipt)
            self.requests.wait(answer)

        self.intake.submit(payloads, None, done, watch=True)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Run the pipeline and the journal; after the body everything is drained."""
        with trio.fail_after(3600):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.journal.run)  # type: ignore[attr-defined]
                async with super().open():
                    yield
                nursery.cancel_scope.cancel()

    @property
    def codes(self) -> dict[bytes, str]:
        """The codes of the refused requests, and the keys of the others, by first payload."""
        return {
            payload: ",".join(outcome.keys) if isinstance(outcome, StoredObjects) else outcome.code
            for payload, outcome in self.answers.items()
        }

    def is_empty(self) -> bool:
        """Return whether no payload takes memory."""
        channel = self.channel
        counts = channel.jobs, channel.bytes, channel.bytes_held, channel.jobs_put_back
        kept = self.accounting.open, len(self.accounting.jobs()), channel.forming_jobs
        return (*counts, *kept, self.worker.admission.put_back.batches) == (0,) * 8


async def _wait_until_answered(pipeline: StorePipeline, count: int) -> None:
    while len(pipeline.answers) < count:  # noqa: ASYNC110 - with autojump_clock it costs nothing
        await trio.sleep(0.1)


@pytest.mark.parametrize("batches", [{}, _BATCHES], ids=["alone", "batches"])
@pytest.mark.parametrize("fault", [forbidden, internal_error, slow_down, None])
async def test_what_is_not_stored_in_time_is_dropped_everywhere(
    autojump_clock: object, fault: object, batches: dict[str, str]
) -> None:
    """Payloads that were refused would take memory, and be stored all the same later."""
    del autojump_clock
    store = FaultyStore(fault=first(10**9, fault)) if callable(fault) else FaultyStore()
    store.seconds = 0.01 if callable(fault) else math.inf
    pipeline = StorePipeline(store, workers=2, **batches)
    async with pipeline.open():
        for number in range(25):
            pipeline.post(b"%d" % number, *[b'"%d"' % number] * 9)
        await _wait_until_answered(pipeline, 25)
        assert set(pipeline.codes.values()) == {"STORE_UNAVAILABLE"}
        assert max(pipeline.times.values()) <= _TIMEOUT
        await trio.testing.wait_all_tasks_blocked()
        assert pipeline.is_empty()
        # The store works again: nothing of the past is stored.
        store.fault, store.seconds = lambda _: None, 0.01
        await trio.sleep(30)
        assert not [key for key in store.objects if not key.startswith(_CHECK)]
        assert not pipeline.health.troubles
        pipeline.answers.clear()
        pipeline.post(b"2")
        await _wait_until_answered(pipeline, 1)
        assert next(iter(pipeline.codes.values())) in store.objects
    figures = pipeline.accounting.figures()
    assert (figures.lost_when_closed, figures.accepted, figures.open) == (0, 1, 0)


async def test_a_short_failure_is_only_a_longer_wait(autojump_clock: object) -> None:
    """Each restart of the store would be an error for all clients."""
    del autojump_clock
    store = FaultyStore(fault=first(4, internal_error), seconds=0.01)
    pipeline = StorePipeline(store)
    async with pipeline.open():
        for number in range(5):
            pipeline.post(b"%d" % number)
        await _wait_until_answered(pipeline, 5)
    assert sorted(pipeline.codes.values()) == sorted(store.objects)
    assert set(store.attempts.values()) == {5}


async def test_a_batch_that_was_tried_stays_whole(autojump_clock: object) -> None:
    """A repetition would have other bytes than an attempt whose outcome is not known."""
    del autojump_clock
    store = FaultyStore(fault=first(10**9, internal_error), seconds=0.01)
    pipeline = StorePipeline(store, 4, **_BATCHES)
    async with pipeline.open():
        pipeline.post(b"1")
        await trio.sleep(0.9)
        pipeline.post(b"2")
        await _wait_until_answered(pipeline, 1)
        store.fault = lambda _: None
        pipeline.worker.admission.put_back.retry_now()
        await _wait_until_answered(pipeline, 2)
        (key,) = store.objects
        assert store.objects == {key: b"1\n2\n"}
        assert pipeline.codes == {b"1": "STORE_UNAVAILABLE", b"2": key}
        assert pipeline.is_empty()
    assert pipeline.accounting.figures().lost_when_closed == 0


async def test_a_new_batch_has_only_what_requests_wait_for(autojump_clock: object) -> None:
    """Payloads whose request was refused a while ago would be stored after an outage."""
    del autojump_clock
    store = FaultyStore(seconds=math.inf)
    pipeline = StorePipeline(store, workers=1, BATCH_MAX_PAYLOADS="2", BATCH_LINGER="1s")
    async with pipeline.open():
        pipeline.post(b"1", b"1")  # the worker has it, until it is given up
        pipeline.post(b"2")
        await trio.sleep(0.9)
        pipeline.post(b"3")
        store.seconds = 0.01
        await _wait_until_answered(pipeline, 3)
        assert [*store.objects.values()] == [b"3\n"]
        assert pipeline.codes[b"2"] == "STORE_UNAVAILABLE"
        assert pipeline.is_empty()


async def test_a_request_is_refused_if_the_store_refuses_its_object(
    autojump_clock: object,
) -> None:
    """A client would wait until its request is given up, and repeat it for ever."""
    del autojump_clock
    store = FaultyStore(fault=lambda _: InvalidObjectError("InvalidTag", "no"), seconds=0.01)
    pipeline = StorePipeline(store)
    async with pipeline.open():
        pipeline.post(b"1")
        await _wait_until_answered(pipeline, 1)
        assert pipeline.codes == {b"1": "STORE_REFUSED"}
        assert pipeline.times[b"1"] < 1
        assert pipeline.is_empty()
    figures = pipeline.accounting.figures()
    assert (figures.lost_when_closed, figures.accepted, figures.dead) == (0, 0, 1)


class _Halves(FaultyStore):
    """A store that refuses the payload 1 for good, and the payload 2 for a while."""

    async def put(self, key: str, body: EncodedObject, members: Members, *, repeat: bool) -> None:
        if b"".join(body.pieces) == b"1\n":
            await trio.sleep(1.4)  # between the second and the third round of the other one
            raise InvalidObjectError("InvalidTag", "no")
        await super().put(key, body, members, repeat=repeat)


async def test_the_rest_of_a_refused_request_is_dropped_where_it_waits(
    autojump_clock: object,
) -> None:
    """A part of a request that was refused would be stored later, and take memory meanwhile."""
    del autojump_clock
    store = _Halves(fault=first(6, internal_error))
    pipeline = StorePipeline(store)
    async with pipeline.open():
        pipeline.post(b"1", b"2")
        await _wait_until_answered(pipeline, 1)
        assert pipeline.codes == {b"1": "STORE_REFUSED"}
        await trio.sleep(20)
        assert pipeline.is_empty()
    assert store.objects == {}
