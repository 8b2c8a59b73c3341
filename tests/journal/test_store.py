"""The journal of DURABILITY=store, without a pipeline: its answers, its keys and what it gives up.

``test_contract.py`` has the promises of every journal.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio

from payloadd.errors import KeyReusedError, RefusedError, StoreRefusedError, TooLargeError
from payloadd.journal import store as module
from payloadd.journal.api import Receipt
from payloadd.journal.store import StoreJournal
from payloadd.model.stored_objects import MOST_KEYS, StoredObjects
from payloadd.model.streams import first_seq
from payloadd.observe.health import Health
from tests.support.journal import TEST_TIMEOUT, batch, id_of, parts
from tests.support.listener import RecordingListener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from payloadd.journal.api import StoreOutcome
    from payloadd.model.job import Job

_SECONDS: Final = 30.0


@dataclass
class Client:
    """One request: what ``append`` and ``wait`` called back with."""

    receipts: list[Receipt | RefusedError] = field(default_factory=list)
    outcomes: list[StoreOutcome] = field(default_factory=list)
    answered: trio.Event = field(default_factory=trio.Event)
    time: float = 0.0

    def answer(self, receipt: Receipt, outcome: StoreOutcome) -> None:
        """Record the outcome."""
        assert receipt == self.receipts[0]
        self.outcomes.append(outcome)
        self.time = trio.current_time()
        self.answered.set()

    async def outcome(self) -> StoreOutcome:
        """Wait for the outcome, and check that there is one only."""
        await self.answered.wait()
        await trio.testing.wait_all_tasks_blocked()
        (one,) = self.outcomes
        return one


class Rig:
    """A journal, with the pipeline that it reports to."""

    def __init__(self, most_keys: int = 100, **listener: int) -> None:
        self.listener = RecordingListener(**({"max_jobs": 10_000, "max_bytes": 10**6} | listener))
        self.listener.opened({0: 0, 1: first_seq(1)}, 0)
        self.health = Health()
        self.passed = 0
        self.journal = StoreJournal(
            self.listener, self.health, _SECONDS, most_keys, lambda: self.passed * 1000
        )
        self.given_up = 0
        self.journal.given_up = self._give_up

    def _give_up(self) -> None:
        self.given_up += 1

    def post(
        self,
        *numbers: int,
        key: bytes | None = None,
        like: int | None = None,
        stream: int = 0,
        waits: bool = True,
    ) -> Client:
        """Append a request with a job for each number; ``like``: the number of its payloads."""
        client = Client()

        def done(outcome: Receipt | RefusedError) -> None:
            client.receipts.append(outcome)
            if waits and isinstance(outcome, Receipt):
                self.journal.wait(client.answer)

        some = parts(*numbers)
        if like is not None:
            some = [one._replace(lines=b"%d\n" % n) for n, one in enumerate(some, like)]
        receipt = Receipt(some[0].id if some else id_of(0), len(some))
        self.journal.append(receipt, some, key, done, stream)
        return client

    def job(self, number: int) -> Job:
        """Return a job that was queued, by the number of its id."""
        return next(one for one in self.listener.received if one.id == id_of(number))

    def store(self, *numbers: int, key: str = "k") -> None:
        """Settle the batch of these jobs."""
        one = batch(*map(self.job, numbers), sealed=False)
        one.key = key
        self.journal.settle(one)

    def bury(self, *numbers: int) -> None:
        """Bury the batch of these jobs."""
        self.journal.bury(batch(*map(self.job, numbers)), "InvalidTag", "no such tag")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Send answers while the body runs."""
        with trio.fail_after(10 * TEST_TIMEOUT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.journal.run)
                await trio.testing.wait_all_tasks_blocked()
                yield
                nursery.cancel_scope.cancel()


def in_object(*keys: str, more: int = 0) -> StoredObjects:
    """Return the outcome of a stored request."""
    return StoredObjects([*keys], more)


async def test_a_request_is_answered_when_its_last_job_is_stored() -> None:
    """A client would be promised payloads that the store does not have."""
    rig = Rig()
    async with rig.running():
        first, second = rig.post(1, 2, 3), rig.post(4)
        assert first.receipts == [Receipt(id_of(1), 3)]
        rig.store(3, 4, key="c")
        rig.store(1, key="b")
        assert await second.outcome() == in_object("c")
        assert not first.outcomes
        assert rig.listener.payloads["acknowledged"] == 1
        rig.store(2, key="a")
        assert await first.outcome() == in_object("b", "a", "c")
        assert rig.listener.payloads["acknowledged"] == 4


async def test_an_answer_names_a_thousand_objects_at_most() -> None:
    """An answer would grow with the request, and need megabytes."""
    rig = Rig()
    numbers = range(1, MOST_KEYS + 3)
    async with rig.running():
        client = rig.post(*numbers)
        for number in reversed(numbers):
            rig.store(number, key=f"{number:04}")
        assert await client.outcome() == in_object(
            *[f"{number:04}" for number in numbers[:MOST_KEYS]], more=2
        )


async def test_a_request_without_payloads_is_answered_at_once() -> None:
    """A client that sends an empty collection would wait for ever."""
    rig = Rig()
    client = rig.post(key=b"k")
    assert client.outcomes == [in_object()]
    assert rig.post(1, key=b"k").receipts == [Receipt(id_of(1), 1)]


async def test_a_repetition_joins_the_request_that_runs() -> None:
    """A client that repeats a request before its answer would store its payloads twice."""
    rig = Rig()
    async with rig.running():
        clients = [rig.post(1, key=b"k"), rig.post(11, key=b"k", like=1)]
        clients += [rig.post(21, key=b"k", like=1, waits=False)]
        assert {one.receipts[0] for one in clients} == {Receipt(id_of(1), 1)}
        assert rig.post(31, key=b"k").receipts[0].code == "KEY_REUSED"  # type: ignore[union-attr]
        rig.store(1)
        assert [await one.outcome() for one in clients[:2]] == [in_object("k")] * 2
        later = rig.post(41, key=b"k", like=1)
        assert (later.receipts, later.outcomes) == ([Receipt(id_of(1), 1)], [in_object("k")])
        assert isinstance(rig.post(51, key=b"k").receipts[0], KeyReusedError)
        assert len(rig.listener.received) == 1
        assert rig.journal.figures().idempotency_keys == 1


async def test_a_repetition_gets_the_answer_of_a_client_that_is_gone() -> None:
    """A client whose connection broke would wait for ever for the answer to its repetition."""
    rig = Rig()
    async with rig.running():
        rig.post(1, key=b"k", waits=False)
        again = rig.post(11, key=b"k", like=1)
        third = rig.post(21, key=b"k", like=1)
        rig.store(1)
        assert [await one.outcome() for one in (again, third)] == [in_object("k")] * 2


async def test_the_number_of_joined_repetitions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that repeats a request without end would fill the memory."""
    monkeypatch.setattr(module, "_MOST_JOINED", 2)
    rig = Rig()
    async with rig.running():
        first = rig.post(1, key=b"k")
        for number in (11, 21):
            rig.post(number, key=b"k", like=1)
        with pytest.raises(RefusedError, match="full"):
            rig.post(31, key=b"k", like=1)
        rig.store(1)
        await first.outcome()
        rig.post(2, key=b"l")
        rig.post(12, key=b"l", like=2)


async def test_the_newest_keys_are_known_for_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory would grow with the number of requests, or a retry be stored twice."""
    rig = Rig(most_keys=2)
    for number in (1, 2, 3):
        rig.post(number, key=b"%d" % number)
        rig.store(number)
    assert rig.post(11, key=b"3", like=3).receipts == [Receipt(id_of(3), 1)]
    assert rig.post(12, key=b"1", like=1).receipts == [Receipt(id_of(12), 1)]
    rig.passed += 24 * 3600
    assert rig.post(13, key=b"3", like=3).receipts == [Receipt(id_of(13), 1)]
    monkeypatch.setattr(module, "_MOST_OBJECTS", 3)
    rig.post(21, 22, 23, key=b"large")
    for number in (21, 22, 23):
        rig.store(number, key=f"{number}")
    assert rig.post(31, 32, 33, key=b"large", like=21).outcomes == [in_object("21", "22", "23")]
    rig.post(4, key=b"4")
    rig.store(4)
    assert rig.post(41, 42, 43, key=b"large", like=21).receipts == [Receipt(id_of(41), 3)]


async def test_what_is_not_stored_in_time_is_given_up(autojump_clock: object) -> None:
    """A client would wait without end, and payloads that were refused would keep memory."""
    rig = Rig()
    async with rig.running():
        await trio.sleep(7)
        began = trio.current_time()
        first, second = rig.post(1, key=b"k"), rig.post(2, 3)
        await trio.sleep(_SECONDS / 2)
        rig.store(2)
        third = rig.post(4)
        for client in (first, second):
            error = await client.outcome()
            assert isinstance(error, RefusedError)
            assert (error.code, error.least_wait) == ("STORE_UNAVAILABLE", 5)
            assert _SECONDS - 1 < client.time - began <= _SECONDS
        assert rig.given_up == 1
        assert [rig.journal.wants(rig.job(number)) for number in (1, 3, 4)] == [False, False, True]
        rig.store(1, 3)  # stored too late: they were not promised
        rig.store(4)
        assert await third.outcome() == in_object("k")
        assert rig.listener.payloads["acknowledged"] == 1
        assert rig.post(11, key=b"k").receipts == [Receipt(id_of(11), 1)]  # the key is free


async def test_a_drain_shortens_the_waits(autojump_clock: object) -> None:
    """A daemon in an outage of the store would be killed before it has answered its clients."""
    rig = Rig()
    async with rig.running():
        began = trio.current_time()
        clients = [rig.post(1)]
        rig.journal.wait_no_longer_than(2)
        clients.append(rig.post(2))
        for client in clients:
            assert isinstance(await client.outcome(), RefusedError)
            assert 2 <= client.time - began < 2.5


async def test_what_the_store_refuses_for_good_is_refused() -> None:
    """A client would repeat a request for ever that no store takes."""
    rig = Rig()
    async with rig.running():
        first, second, third = rig.post(1, 2, key=b"k"), rig.post(3), rig.post(4)
        rig.bury(2, 3)
        rig.store(4)
        for client in (first, second):
            error = await client.outcome()
            assert isinstance(error, StoreRefusedError)
            assert "InvalidTag" in error.detail
        assert await third.outcome() == in_object("k")
        assert not rig.journal.wants(rig.job(1))
        assert rig.post(11, key=b"k").receipts == [Receipt(id_of(11), 1)]
        assert "discarded" not in rig.listener.payloads


async def test_a_full_queue_refuses(autojump_clock: object) -> None:
    """Memory would grow with the requests that wait."""
    rig = Rig(max_jobs=2, max_bytes=10)
    rig.post(1, 2)
    with pytest.raises(RefusedError) as caught:
        rig.post(3)
    assert caught.value.code == "QUEUE_FULL"
    rig.health.report("store", "SlowDown", "too much")
    with pytest.raises(RefusedError) as caught:
        rig.post(3)
    assert caught.value.code == "STORE_UNAVAILABLE"
    with pytest.raises(TooLargeError):
        rig.post(*range(10, 20))


async def test_a_store_in_trouble_that_takes_nothing_is_down(autojump_clock: object) -> None:
    """A balancer would send requests to a daemon that cannot store them, or to none at all."""
    rig = Rig()
    assert rig.journal.refusal() is None
    rig.post(1)
    rig.post(2)
    rig.health.report("store", "AccessDenied", "reason with the name of the bucket")
    refusal = rig.journal.refusal()
    assert refusal is not None
    assert refusal.code == "STORE_UNAVAILABLE"
    assert "AccessDenied" in refusal.detail
    assert "bucket" not in refusal.detail
    rig.store(1)  # others fail
    assert rig.journal.refusal() is None
    await trio.sleep(3)
    assert rig.journal.refusal() is not None
    rig.health.clear("store")
    assert rig.journal.refusal() is None


async def test_thousands_of_answers_do_not_hold_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All other clients would wait while the requests of one object are answered."""
    monkeypatch.setattr(module, "_TIME_SLICE", 0)
    rig = Rig()
    async with rig.running():
        clients = [rig.post(number) for number in range(1, 30)]
        rig.store(*range(1, 30))
        seen: set[int] = set()
        while not clients[-1].outcomes:
            seen.add(sum(len(one.outcomes) for one in clients))
            await trio.lowlevel.checkpoint()
        assert len(seen) > 2


async def test_the_payloads_of_a_stream_are_counted_for_it() -> None:
    """Figures of a stream would be those of another one."""
    rig = Rig()
    seen: list[Any] = []
    rig.listener.acknowledged = lambda seq, payloads: seen.append((seq, payloads))  # type: ignore[method-assign]
    rig.post(1, stream=1)
    rig.store(1)
    assert seen == [(first_seq(1) + 1, 1)]
