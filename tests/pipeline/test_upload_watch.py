"""Requests learn in which objects their payloads are."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest
import trio

from payloadd.errors import InvalidObjectError
from payloadd.journal.api import Receipt
from payloadd.model.job import Batch, Job
from payloadd.pipeline import upload_watch
from payloadd.pipeline.upload_watch import StoredObjects, UploadWatch
from tests.pipeline.rig import FaultyStore, Pipeline, first, forbidden

if TYPE_CHECKING:
    from trio.testing import MockClock

    from payloadd.errors import RefusedError


def receipt(first: int) -> Receipt:
    """Return the receipt of a request whose first job has this id."""
    return Receipt(uuid.UUID(int=first), 1)


def batch(key: str, *ids: int) -> Batch:
    """Return a batch of jobs with these ids."""
    jobs = [Job(9000 + number, uuid.UUID(int=number), b"1\n", 1) for number in ids]
    return Batch(jobs, key, "none", sealed=True)


async def test_a_request_of_several_jobs_is_answered_after_the_last_one() -> None:
    """The client would believe that all of its payloads are in the store."""
    watch, answers = UploadWatch(), list[Any]()
    assert watch.watch(receipt(10), 3, remembered=False)
    watch.wait(receipt(10), 5, answers.append)
    watch.answered(receipt(10))
    watch.store(batch("c", 12, 13, 99))
    watch.store(batch("a", 10))
    assert (answers, watch.waiting) == ([], 1)
    watch.store(batch("b", 11))
    assert answers == [StoredObjects(["a", "b", "c"], 0)]
    assert (watch.jobs, watch._requests, watch._size, watch.waiting) == ({}, {}, 0, 0)


async def test_an_object_that_is_stored_before_the_commit_is_answered_is_not_missed() -> None:
    """The client would wait for an object that will not be stored again."""
    watch, answers = UploadWatch(), list[Any]()
    watch.watch(receipt(10), 1, remembered=False)
    watch.store(batch("a", 10))
    watch.wait(receipt(10), 5, answers.append)
    watch.answered(receipt(10))
    assert answers == [StoredObjects(["a"], 0)]
    assert watch._requests == {}


async def test_a_repetition_gets_the_objects_while_they_are_remembered() -> None:
    """A client that lost the answer could not find its objects."""
    watch, answers = UploadWatch(most_jobs=2), list[Any]()
    for number in (10, 20):
        watch.watch(receipt(number), 1, remembered=True)
        watch.answered(receipt(number))
        watch.store(batch(f"key-{number}", number))
    watch.wait(receipt(10), 5, answers.append)
    watch.wait(receipt(20), 0, answers.append)
    assert answers == [StoredObjects(["key-10"], 0), StoredObjects(["key-20"], 0)]
    watch.watch(receipt(30), 1, remembered=True)  # forgets the oldest one
    watch.wait(receipt(10), 5, answers.append)
    watch.wait(receipt(20), 5, answers.append)
    assert answers[2:] == [None, StoredObjects(["key-20"], 0)]


async def test_a_repetition_waits_together_with_the_first_request() -> None:
    """The repetition would get a 202 that says less than the first answer."""
    watch, answers = UploadWatch(), list[Any]()
    watch.watch(receipt(10), 1, remembered=True)
    for _ in range(2):
        watch.wait(receipt(10), 5, answers.append)
        watch.answered(receipt(10))
    assert watch.waiting == 2
    watch.store(batch("a", 10))
    assert answers == [StoredObjects(["a"], 0)] * 2


async def test_requests_that_wait_are_never_forgotten() -> None:
    """A client would get its answer only at its deadline."""
    watch, answers = UploadWatch(most_jobs=3), list[Any]()
    watch.watch(receipt(10), 2, remembered=True)
    watch.wait(receipt(10), 5, answers.append)
    assert not watch.watch(receipt(20), 2, remembered=True)
    watch.wait(receipt(20), 5, answers.append)
    assert answers == [None]  # not watched: answered at once
    assert watch.watch(receipt(30), 1, remembered=True)
    watch.unwatch(receipt(30))
    watch.unwatch(receipt(30))
    assert watch.watch(receipt(40), 1, remembered=False)
    watch.answered(receipt(40))  # nothing waits, and no repetition can come
    assert watch._size == 2
    watch.store(batch("a", 10, 11, 40))
    assert answers == [None, StoredObjects(["a"], 0)]


async def test_a_wait_that_is_ended_is_answered_once() -> None:
    """A client that has left would keep its connection, or be answered twice."""
    watch, answers = UploadWatch(), list[Any]()
    watch.watch(receipt(1), 1, remembered=True)

    def first(objects: object) -> None:
        answers.append(("first", objects))

    def second(objects: object) -> None:
        answers.append(("second", objects))

    watch.wait(receipt(1), 60, first)
    watch.wait(receipt(1), 60, second)
    watch.end_wait(receipt(1), first)
    watch.end_wait(receipt(1), first)
    watch.end_wait(receipt(2), first)
    assert (answers, watch.waiting) == ([("first", None)], 1)
    watch.store(batch("a", 1))
    assert [name for name, _ in answers] == ["first", "second"]
    assert watch.waiting == 0


async def test_a_dead_letter_is_answered_at_once() -> None:
    """The client would wait for an object that never comes."""
    watch, answers = UploadWatch(), list[Any]()
    watch.watch(receipt(10), 2, remembered=True)
    watch.wait(receipt(10), 5, answers.append)
    watch.bury(batch("a", 10))
    watch.store(batch("b", 11))
    watch.wait(receipt(10), 5, answers.append)
    assert answers == [None, None]
    assert (watch.jobs, watch._requests, watch._size) == ({}, {}, 0)


async def test_waits_end_in_time_and_the_request_stays_known(autojump_clock: MockClock) -> None:
    """A client would wait longer than it has said; a later repetition would not get its keys."""
    del autojump_clock
    watch, answers = UploadWatch(), list[tuple[float, object]]()
    began = trio.current_time()

    def note(objects: StoredObjects | None) -> None:
        answers.append((trio.current_time() - began, objects))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.run)
        for number, seconds, remembered in ((10, 2, True), (20, 1, False), (30, 60, False)):
            watch.watch(receipt(number), 1, remembered=remembered)
            watch.wait(receipt(number), seconds, note)
        await trio.sleep(5)
        assert [answer for _, answer in answers] == [None, None]
        assert [round(seconds) for seconds, _ in answers] == [1, 2]
        assert set(watch.jobs) == {10, 30}
        watch.wait_no_longer_than(1)
        await trio.sleep(1.5)
        assert len(answers) == 3
        watch.store(batch("a", 10))
        watch.wait(receipt(10), 2, note)
        assert answers[-1][1] == StoredObjects(["a"], 0)
        watch.watch(receipt(40), 1, remembered=False)
        watch.wait(receipt(40), 99, note)  # the drain has begun
        await trio.sleep(0.3)
        assert len(answers) == 5
        nursery.cancel_scope.cancel()


async def test_the_keys_of_a_request_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request of 10,000 objects would get an answer of a MiB, and keep as much memory."""
    monkeypatch.setattr(upload_watch, "MOST_KEYS", 2)
    watch, answers = UploadWatch(), list[Any]()
    watch.watch(receipt(10), 5, remembered=False)
    watch.wait(receipt(10), 5, answers.append)
    for number in (14, 13, 12, 11, 10):
        watch.store(batch(str(number), number))
    assert answers == [StoredObjects(["10", "11"], 3)]


@pytest.mark.parametrize("found", [True, False], ids=["stored", "dead"])
async def test_batches_that_end_late_answer_their_requests(
    found: bool,  # noqa: FBT001 - a parameter of pytest
    autojump_clock: MockClock,
) -> None:
    """A client would wait in vain for a batch that failed before it was stored, or is dead."""
    del autojump_clock
    fault = first(7, forbidden) if found else (lambda _: InvalidObjectError("Bad", "no"))
    pipeline = Pipeline(FaultyStore(fault), BATCH_MAX_PAYLOADS="2", KEY_TEMPLATE="{id}.ndjson")
    answers: list[Any] = []

    def done(outcome: Receipt | RefusedError) -> None:
        assert isinstance(outcome, Receipt)
        pipeline.accounting.uploads.wait(outcome, 999, answers.append)

    async with pipeline.open():
        pipeline.intake.submit([b"1", b"2", b"3"], None, done, watch=True)
        await trio.sleep(100)
        if found:
            assert sorted(answers[0].keys) == sorted(pipeline.store.objects)
            assert (len(answers), len(answers[0].keys)) == (1, 2)
        else:
            assert answers == [None]


async def test_batches_without_watched_requests_cost_one_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each object would pay for a feature that most clients do not use."""
    monkeypatch.delattr(UploadWatch, "store")
    pipeline = Pipeline(FaultyStore())
    await pipeline.drain([b"1"], [b"2"])
    assert len(pipeline.store.objects) == 2
