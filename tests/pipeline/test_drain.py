"""A drain waits for the store in an outage, and not for batches that only an operator can help."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import pytest
import trio

from payloadd.errors import TransientStoreError
from tests.pipeline.keeping_journal import StreamsPipeline
from tests.pipeline.rig import FaultyStore, Pipeline, forbidden, internal_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from trio.testing import MockClock

    from payloadd.errors import StoreError
    from payloadd.model.formats.api import EncodedObject
    from payloadd.model.job import Members

_DRAIN_TIMEOUT: Final = 30.0
_AT_ONCE: Final = 1.0
"""Seconds within which a drain ends that waits for no batch; all clocks here are virtual."""
_LARGE: Final = {"MAX_LENGTH": "60B", "MAX_QUEUE_BYTES": "60B"}
"""Batches of more than 15 bytes wait in the journal."""


def no_connection() -> StoreError:
    """Return the error of a store that is down."""
    return TransientStoreError("ConnectError", "connection refused")


class _Store(FaultyStore):
    """A store that refuses payloads by their first word."""

    def __init__(self) -> None:
        super().__init__(seconds=0.01)
        self.errors: dict[bytes, Callable[[], StoreError]] = {}
        """By the first word of a payload; an empty word stands for all others."""

    async def put(self, key: str, body: EncodedObject, members: Members, *, repeat: bool) -> None:
        """Keep the object, or refuse it."""
        word = b"".join(body.pieces).split()[0]
        error = self.errors.get(word, self.errors.get(b""))
        if error is not None:
            self.attempts[key] += 1
            await trio.sleep(0.01)
            raise error()
        await super().put(key, body, members, repeat=repeat)


class _Drain:
    """A pipeline that is drained after it got payloads, and the time that the drain takes."""

    def __init__(self, **environ: str) -> None:
        self.store = _Store()
        self.pipeline = StreamsPipeline(self.store, 4, **environ)
        self.seconds = 0.0
        """The seconds that the drain took, at most DRAIN_TIMEOUT."""

    @asynccontextmanager
    async def after(self) -> AsyncIterator[None]:
        """Drain the pipeline after the body, until DRAIN_TIMEOUT."""
        with trio.CancelScope() as scope:
            async with self.pipeline.open():
                yield
                began = trio.current_time()
                scope.deadline = began + _DRAIN_TIMEOUT
        self.seconds = trio.current_time() - began

    async def post(self, *lines: bytes) -> None:
        """Post payloads one after the other, each once the one before was tried."""
        idle = self.pipeline.worker.admission.idle
        for line in lines:
            tried = len(self.store.attempts)
            self.pipeline.kept.commit(0, line + b"\n")
            while len(self.store.attempts) == tried or idle.busy:  # noqa: ASYNC110
                await trio.sleep(0.01)

    @property
    def journaled(self) -> int:
        """Return the payloads that are left to the journal."""
        return self.pipeline.accounting.open


@pytest.mark.parametrize("environ", [{}, _LARGE])
@pytest.mark.parametrize("before", [[], [b"good 1"], [b"bad 0", b"good 1"]])
async def test_a_drain_leaves_batches_that_only_an_operator_can_help(
    autojump_clock: MockClock, before: list[bytes], environ: dict[str, str]
) -> None:
    """A restart would take DRAIN_TIMEOUT if the last batch was below a forbidden prefix."""
    assert autojump_clock.autojump_threshold == 0
    drain = _Drain(**environ)
    drain.store.errors[b"bad"] = forbidden
    lines = [*before, b"bad 1 that is large", b"bad 2 that is large"]
    async with drain.after():
        await drain.post(*lines)
    assert drain.seconds < _AT_ONCE
    assert drain.journaled == sum(line.startswith(b"bad") for line in lines)


async def test_a_drain_stores_what_it_can_beside_such_batches(autojump_clock: MockClock) -> None:
    """One forbidden prefix would leave the payloads of all others to the journal."""
    assert autojump_clock.autojump_threshold == 0
    drain = _Drain()
    drain.store.errors[b"bad"] = forbidden
    async with drain.after():
        await drain.post(b"bad 1")
        drain.store.seconds = 2.0
        drain.pipeline.kept.commit(0, *[b"good %d\n" % number for number in range(20)], b"bad 2\n")
    # Four workers store 20 batches in 2 s each.
    assert 10 <= drain.seconds < 10 + _AT_ONCE
    assert len(drain.store.objects) == 20
    assert drain.journaled == 2


@pytest.mark.parametrize("error", [no_connection, internal_error])
@pytest.mark.parametrize("before", [[], [b"good 1"], [b"bad 0", b"good 1", b"bad 1"]])
async def test_a_drain_in_an_outage_waits_until_its_timeout(
    autojump_clock: MockClock, before: list[bytes], error: Callable[[], StoreError]
) -> None:
    """Payloads would be left behind although the store works again in a moment."""
    assert autojump_clock.autojump_threshold == 0
    drain = _Drain()
    drain.store.errors[b"bad"] = forbidden
    async with drain.after():
        await drain.post(*before)
        drain.store.errors[b""] = error
        await drain.post(b"good 2", b"good 3")
    assert drain.seconds == pytest.approx(_DRAIN_TIMEOUT)
    assert len(drain.store.objects) == before.count(b"good 1")


async def test_a_drain_ends_when_the_outage_does(autojump_clock: MockClock) -> None:
    """A daemon that is not started again would keep payloads in its journal."""
    assert autojump_clock.autojump_threshold == 0
    drain = _Drain()
    drain.store.errors = {b"": no_connection, b"bad": forbidden}

    async def end_outage() -> None:
        await trio.sleep(12)
        del drain.store.errors[b""]

    async with trio.open_nursery() as nursery, drain.after():
        await drain.post(b"good 1", b"bad 1", b"good 2")
        nursery.start_soon(end_outage)
    assert 10 < drain.seconds < _DRAIN_TIMEOUT
    assert drain.journaled == 1


@pytest.mark.parametrize(
    ("errors", "seconds"),
    [([no_connection, forbidden], 0.0), ([forbidden, no_connection], _DRAIN_TIMEOUT)],
)
async def test_the_last_error_of_a_batch_decides(
    autojump_clock: MockClock, errors: list[Callable[[], StoreError]], seconds: float
) -> None:
    """A drain would go by an error that is over."""
    assert autojump_clock.autojump_threshold == 0
    drain = _Drain()
    async with drain.after():
        drain.store.errors[b""] = errors[0]
        await drain.post(b"good 1")
        drain.store.errors[b""] = errors[1]
        await trio.sleep(60)
    assert drain.seconds == pytest.approx(seconds, abs=_AT_ONCE)
    assert drain.journaled == 1


async def test_a_drain_without_a_journal_waits_for_the_operator(autojump_clock: MockClock) -> None:
    """Payloads would be lost although an operator corrects the rights."""
    assert autojump_clock.autojump_threshold == 0
    store = _Store()
    store.errors[b""] = forbidden
    pipeline = Pipeline(store)

    async def correct_rights() -> None:
        await trio.sleep(20)
        store.errors.clear()

    async with trio.open_nursery() as nursery, pipeline.open():
        await pipeline.intake.accept([b"1"])
        nursery.start_soon(correct_rights)
    assert trio.current_time() >= 20
    assert pipeline.accounting.stored == 1
