"""Requests with too many parts for one commit, in the journal as a whole."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.errors import KeyReusedError, RefusedError
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.journal import Tuning
from payloadd.journal.sqlite.operations import Stage
from payloadd.journal.sqlite.schema import FILE
from tests.journal.opener import ALL
from tests.support.journal import (
    QUICK,
    append,
    disk_full,
    id_of,
    jobs_in_file,
    open_rig,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from payloadd.journal.api import Receipt
    from payloadd.journal.sqlite.operations import Operation

_SMALL_STEPS: Final = replace(QUICK, most_large_rows=10)
"""Requests of more than 10 jobs are written in steps of 10."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a journal that does not exist yet."""
    return tmp_path / "state" / FILE


def seqs(database: Database) -> list[int]:
    """Return the numbers of all jobs that can be read."""
    return [one.seq for one in database.page(*ALL)]


async def test_small_requests_are_answered_while_a_large_one_is_written(path: Path) -> None:
    """Otherwise each client waits for the largest request of all clients."""
    path.parent.mkdir()
    async with open_rig(path, tuning=_SMALL_STEPS) as rig, trio.open_nursery() as nursery:
        nursery.start_soon(rig.feeder.refill, rig.journal)
        rig.database.hold()
        nursery.start_soon(rig.accept, 1, None, 95)
        await rig.database.held()
        nursery.start_soon(rig.accept, 200)
        await wait_all_tasks_blocked()
        rig.database.release_gate()
        await until(lambda: len(rig.answered) == 2)
        assert rig.answered == [id_of(200), id_of(1)]
        await until(lambda: rig.channel.jobs == 96)
        assert rig.receive_all() == [*range(1, 97)]
        assert (rig.accounting.accepted, rig.database.totals.payloads) == (96, 96)
        nursery.cancel_scope.cancel()


async def test_large_and_small_requests_are_all_offered_in_order(path: Path) -> None:
    """Otherwise jobs are uploaded twice, out of order, or not before the next start."""
    path.parent.mkdir()
    async with open_rig(path, tuning=_SMALL_STEPS) as rig, trio.open_nursery() as nursery:
        nursery.start_soon(rig.feeder.refill, rig.journal)
        async with trio.open_nursery() as posting:
            for number in range(5):
                posting.start_soon(rig.accept, 1000 * number, None, 45)
                for small in range(20):
                    posting.start_soon(rig.accept, 1000 * number + 500 + small)
                    await trio.lowlevel.checkpoint()
        await until(lambda: rig.channel.jobs == 325)
        assert rig.receive_all() == [*range(1, 326)]
        nursery.cancel_scope.cancel()


async def test_a_disk_error_refuses_a_large_request_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise half of a refused request is stored; or jobs committed beside it are not."""
    path.parent.mkdir()
    async with open_rig(path, tuning=_SMALL_STEPS) as rig, trio.open_nursery() as nursery:
        nursery.start_soon(rig.feeder.refill, rig.journal)
        refused: list[RefusedError] = []

        async def post() -> None:
            try:
                await rig.accept(1, None, 95)
            except RefusedError as error:
                refused.append(error)

        rig.database.hold()
        nursery.start_soon(post)
        await rig.database.held()
        nursery.start_soon(rig.accept, 200)
        await wait_all_tasks_blocked()
        commit = rig.database.commit

        def fail_in_the_sixth_step(operations: Iterable[Operation]) -> None:
            operations = list(operations)
            if any(isinstance(one, Stage) and one.start == 50 for one in operations):
                rig.database.write_error = disk_full
            commit(operations)

        monkeypatch.setattr(rig.database, "commit", fail_in_the_sixth_step)
        rig.database.release_gate()
        await until(lambda: refused)
        rig.database.write_error = None
        assert refused[0].code == "DISK_ERROR"
        await until(lambda: rig.journal.refusal() is None)
        await rig.accept(300)
        await until(lambda: rig.channel.jobs == 2)
        assert rig.receive_all() == [96, 97]
        await until(lambda: jobs_in_file(path) == 2)
        assert (rig.accounting.accepted, rig.database.totals.jobs) == (2, 2)
        nursery.cancel_scope.cancel()


async def test_a_large_request_whose_key_is_taken_meanwhile_is_not_stored(path: Path) -> None:
    """The payloads of a refused request would be stored, and again if the client sends them."""
    path.parent.mkdir()
    async with open_rig(path, tuning=_SMALL_STEPS) as rig, trio.open_nursery() as nursery:
        nursery.start_soon(rig.feeder.refill, rig.journal)
        refused: list[RefusedError] = []

        async def post() -> None:
            try:
                await rig.accept(1, b"key", 295)
            except RefusedError as error:
                refused.append(error)

        rig.database.hold()
        nursery.start_soon(post)
        await rig.database.held()
        nursery.start_soon(rig.accept, 500, b"key")
        await wait_all_tasks_blocked()
        rig.database.release_gate()
        await until(lambda: refused)
        assert isinstance(refused[0], KeyReusedError)
        await until(lambda: rig.channel.jobs)
        await rig.accept(600)
        await until(lambda: jobs_in_file(path) == 2)
        await until(lambda: rig.channel.jobs >= 2)
        assert rig.receive_all() == [296, 297]
        assert (rig.accounting.accepted, rig.database.totals.jobs) == (2, 2)
        nursery.cancel_scope.cancel()


async def test_a_staged_request_is_completed_before_the_journal_closes(path: Path) -> None:
    """Otherwise a drain refuses a request that is half written."""
    path.parent.mkdir()
    outcomes: list[Receipt | RefusedError] = []
    wanted = append(1, count=95)
    async with open_rig(path, tuning=_SMALL_STEPS) as rig:
        rig.database.hold()
        rig.journal.append(wanted.receipt, wanted.parts, None, outcomes.append)
        await rig.database.held()
    assert outcomes == [wanted.receipt]
    with closing(Database(path)) as again:
        assert len(seqs(again)) == 95


@pytest.mark.parametrize("most", [(10, 10**6), (4, 10**6), (10, 13), (10, 5), (10, 1)])
async def test_a_page_is_read_in_pieces(path: Path, most: tuple[int, int]) -> None:
    """Otherwise each commit waits until thousands of rows are read."""
    path.parent.mkdir()
    async with open_rig(path, tuning=Tuning(page_jobs=3, page_bytes=7)) as rig:
        await rig.accept(1, count=7)
        await rig.accept(100_000_000)
        found = await rig.journal.page(0, *most)
        assert [one.seq for one in found] == [*range(1, len(found) + 1)]
        size = sum(len(one.lines) for one in found)
        assert len(found) <= most[0]
        assert size <= most[1] or len(found) == 1
        more = await rig.journal.page(len(found), 1, 1)
        complete = len(found) == most[0] or not more or size + len(more[0].lines) > most[1]
        assert complete, "a page that is short makes the workers wait"
