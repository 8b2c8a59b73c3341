"""The dead letters that the status page shows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from payloadd.errors import PayloaddError
from payloadd.observe.dead_letter_figures import DeadLetterFigures
from payloadd.observe.status import DeadLetterGroup

if TYPE_CHECKING:
    from collections.abc import Callable

GROUP = DeadLetterGroup("default", "EntityTooLarge", 1, 2)


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in the event loop: while a thread runs, a clock that jumps would jump."""

    async def run_sync(function: Callable[[], object]) -> object:
        await trio.lowlevel.checkpoint()
        return function()

    monkeypatch.setattr("trio.to_thread.run_sync", run_sync)


class Reader:
    """A journal that counts how often it is read."""

    def __init__(self) -> None:
        self.reads = 0
        self.failure: Exception | None = None

    def __call__(self) -> list[DeadLetterGroup]:
        """Return one group, or fail."""
        self.reads += 1
        if self.failure is not None:
            raise self.failure
        return [GROUP] * self.reads


async def test_the_first_request_gets_groups() -> None:
    """A single `curl` would never show dead letters."""
    figures = DeadLetterFigures(Reader())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(figures.run)
        await figures.refresh()
        assert figures.groups == [GROUP]
        nursery.cancel_scope.cancel()


async def test_the_journal_is_read_every_ten_seconds_at_most_and_only_on_request(
    autojump_clock: trio.testing.MockClock, no_threads: None
) -> None:
    """A hundred pages would read all dead letters a hundred times, and no page once a second."""
    reader = Reader()
    figures = DeadLetterFigures(reader)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(figures.run)
        await trio.sleep(100)
        assert reader.reads == 0
        for _ in range(100):
            await figures.refresh()
            await trio.sleep(1)
        assert 8 <= reader.reads <= 10
        reads = reader.reads
        await trio.sleep(1000)
        assert reader.reads <= reads + 1
        nursery.cancel_scope.cancel()


async def test_a_journal_that_cannot_be_read_leaves_the_groups_as_they_are(
    autojump_clock: trio.testing.MockClock, no_threads: None
) -> None:
    """The daemon would end, or the page would say that there are no dead letters."""
    reader = Reader()
    figures = DeadLetterFigures(reader)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(figures.run)
        await figures.refresh()
        reader.failure = PayloaddError("no journal")
        await trio.sleep(20)
        await figures.refresh()
        assert (figures.groups, reader.reads) == ([GROUP], 2)
        nursery.cancel_scope.cancel()


async def test_a_request_does_not_wait_for_a_disk_that_hangs() -> None:
    """The page would show nothing, least of all that the disk hangs."""
    figures = DeadLetterFigures(Reader())  # its task does not run
    with trio.fail_after(60):
        await figures.refresh()
    assert figures.groups is None
