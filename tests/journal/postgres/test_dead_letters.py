"""Retries of dead letters, and takeovers, while connections break or processes compete."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg
import pytest

from payloadd.journal.postgres import dead_letters
from payloadd.journal.postgres import session as session_module
from payloadd.journal.postgres.inspection import PostgresInspection
from payloadd.journal.postgres.transaction import write_checkpoint
from tests.journal.postgres.rig import QUICK, member
from tests.support.databases import new_database
from tests.support.journal import batch, until

if TYPE_CHECKING:
    from typing import Any

    from psycopg import Cursor

    from payloadd.journal.postgres.lane import Lane


@pytest.fixture
def url() -> str:
    """Return the URL of a new journal."""
    return new_database()


def retry_all(url: str) -> int:
    """Mark all dead letters, as `payloadd journal dead retry` does; return their number."""
    with PostgresInspection.open(url) as inspection:
        return inspection.retry([])


async def test_a_retry_whose_commit_has_no_answer_is_done(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch would stay in a lane that is given back as empty."""

    def lose_answer(cursor: Cursor[Any], lane: Lane) -> None:
        write_checkpoint(cursor, lane)
        cursor.execute("COMMIT")
        monkeypatch.undo()
        raise psycopg.OperationalError("the answer is lost")

    async with member(url) as other:
        async with member(url) as first:
            await first.accept(1)
            first.journal.bury(batch(first.pipeline.received[0], sealed=False), "C", "r")
        monkeypatch.setattr(dead_letters, "write_checkpoint", lose_answer)
        assert retry_all(url) == 1
        await until(lambda: other.pipeline.payloads.get("revived") == 1)
        sealed = await other.journal.sealed()
        assert sealed is not None
        other.journal.settle(sealed)
        await until(lambda: other.lanes == [1])


async def test_a_retry_before_a_checkpoint_is_repeated_keeps_the_batch(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint that removes the refused batch would remove the revived one, too."""
    monkeypatch.setattr(session_module, "CHECKPOINT_INTERVAL", 10**6)
    async with member(url) as one:
        session, own = one.shared.session, one.shared.session.own
        checkpoint = session.checkpoint

        def lose_answer() -> None:
            ended, buried = own.ended, own.buried
            checkpoint()
            if buried:
                own.ended, own.buried, own.dirty = ended, buried, True
                session.checkpoint = checkpoint  # type: ignore[method-assign]
                assert retry_all(url) == 1
                raise psycopg.OperationalError("the answer is lost")

        await one.accept(1)
        whole = batch(*one.pipeline.received)
        await one.journal.seal(whole)
        session.checkpoint = lose_answer  # type: ignore[method-assign]
        one.pipeline.received = []
        one.journal.bury(whole, "C", "r")
        await until(lambda: one.pipeline.payloads.get("revived") == 1)
        sealed = await one.journal.sealed()
        assert sealed is not None
        assert sealed.key == whole.key


async def test_a_process_that_is_too_late_for_a_lane_does_not_disturb_the_new_owner(
    url: str,
) -> None:
    """The requests of the new owner would be refused, or wait for its next connection."""
    idle = replace(QUICK, maintenance_interval=10**6)
    async with member(url, idle) as winner, member(url, idle) as late:
        async with member(url) as first:
            await first.accept(1)
        (seen,) = [one for one in late.shared.session.others() if one.free]
        assert await winner.shared.calls.once(winner.shared.session.take, seen) is not None
        assert await late.shared.calls.once(late.shared.session.take, seen) is None
        assert await winner.shared.calls.once(winner.shared.session.beat) == []
