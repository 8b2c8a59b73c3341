"""Requests that have ids and no outcome yet."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.errors import RefusedError
from payloadd.journal.api import OutcomeCallback, Receipt
from payloadd.model.job import AscendingIds, uuid_of
from payloadd.pipeline.in_flight import InFlight


class SlowJournal:
    """Keeps the callbacks of requests until the test calls them."""

    def __init__(self) -> None:
        self.waiting: list[OutcomeCallback] = []
        self.refusal: RefusedError | None = None

    def append(
        self,
        receipt: Receipt,
        parts: object,
        key: object,
        done: OutcomeCallback,
        stream: int = 0,
        *,
        marks: object = None,
    ) -> None:
        """Keep the callback, or refuse."""
        del receipt, parts, key, stream, marks
        if self.refusal is not None:
            raise self.refusal
        self.waiting.append(done)


RECEIPT = Receipt(uuid_of(1), 1)


async def test_a_wait_ends_with_the_requests_that_began_before_it() -> None:
    """A watermark would pass a request that is committed later, or never rise under load."""
    journal = SlowJournal()
    in_flight = InFlight(AscendingIds())
    append = in_flight.counting(journal.append)
    outcomes: list[object] = []
    append(RECEIPT, (), None, outcomes.append)
    append(RECEIPT, (), None, outcomes.append)
    ended = trio.Event()

    async def wait() -> None:
        await in_flight.wait_for_earlier()
        ended.set()

    async with trio.open_nursery() as nursery:
        with in_flight.preparing():
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            append(RECEIPT, (), None, outcomes.append)  # began during the wait
            journal.waiting[1](RECEIPT)
            journal.waiting[0](RefusedError("DISK_ERROR", "", 1))
            await wait_all_tasks_blocked()
            assert not ended.is_set()
        await ended.wait()
    assert len(outcomes) == 2
    empty = [in_flight.empty]
    journal.waiting[2](RECEIPT)
    assert [*empty, in_flight.empty] == [False, True]
    await in_flight.wait_for_earlier()


async def test_a_request_that_the_journal_refuses_is_not_waited_for() -> None:
    """After a full disk no watermark would rise any more."""
    journal = SlowJournal()
    journal.refusal = RefusedError("JOURNAL_FULL", "", 1)
    in_flight = InFlight(AscendingIds())
    with pytest.raises(RefusedError):
        in_flight.counting(journal.append)(RECEIPT, (), None, lambda _: None)
    assert in_flight.empty
