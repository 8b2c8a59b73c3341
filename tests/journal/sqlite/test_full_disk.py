"""A disk that is full of what stored jobs have left."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.errors import RefusedError
from payloadd.journal.api import Receipt
from payloadd.journal.sqlite.journal import Tuning
from payloadd.journal.sqlite.segments import FOLDER, LARGE
from payloadd.model.job import Part
from tests.crash.disk import small_disk
from tests.support.journal import TEST_TIMEOUT, batch, id_of, open_rig, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.journal import JournalRig

_NO_MAINTENANCE: Final = Tuning(maintenance_interval=TEST_TIMEOUT)
_MIB: Final = 2**20
_LARGE: Final = b'"' + b"x" * (_MIB // 16) + b'"\n'
"""The lines of a job in a segment."""


async def accept(rig: JournalRig, number: int, lines: bytes, count: int) -> Receipt:
    """Append a request of ``count`` parts of these lines; return the receipt."""
    parts = [Part(id_of(number + index), lines, 1) for index in range(count)]
    outcomes: list[Receipt | RefusedError] = []
    rig.journal.append(Receipt(id_of(number), len(parts)), parts, None, outcomes.append)
    await until(lambda: outcomes)
    if isinstance(outcomes[0], Receipt):
        return outcomes[0]
    raise outcomes[0]


@pytest.mark.parametrize("are_stored", [True, False])
async def test_a_disk_full_of_stored_payloads_takes_others(
    tmp_path: Path, *, are_stored: bool
) -> None:
    """Clients would be refused until maintenance, once a second, has deleted the segments."""
    with small_disk(tmp_path / "disk", "64m") as disk:
        async with open_rig(disk.path / "journal.db", tuning=_NO_MAINTENANCE) as rig:
            await accept(rig, 1, _LARGE, 16 * 24)
            if are_stored:
                jobs = await rig.journal.page(0, 1000, 64 * _MIB)
                rig.journal.settle(batch(*jobs, sealed=False))
                await rig.journal.pulse()
            disk.fill(0)
            if are_stored:
                await accept(rig, 1000, _LARGE, 16 * 6)
                assert rig.health.trouble("journal") is None
                assert len(list((disk.path / FOLDER).iterdir())) == 1
            else:
                with pytest.raises(RefusedError, match="No space left"):
                    await accept(rig, 1000, _LARGE, 16 * 6)
                assert rig.health.trouble("journal") is not None
            disk.free(0)


async def test_small_payloads_go_to_a_disk_full_of_stored_ones(tmp_path: Path) -> None:
    """The commit itself finds the disk full, after which its outcome is unknown."""
    small = b'"' + b"x" * 3000 + b'"\n'
    assert len(small) < LARGE
    with small_disk(tmp_path / "disk", "64m") as disk:
        async with open_rig(disk.path / "journal.db", tuning=_NO_MAINTENANCE) as rig:
            await accept(rig, 1, _LARGE, 16 * 24)
            rig.journal.settle(batch(*await rig.journal.page(0, 1000, 64 * _MIB), sealed=False))
            await rig.journal.pulse()
            disk.fill(0)
            for number in range(500):
                await accept(rig, 1000 + 4 * number, small, 4)
            assert rig.health.trouble("journal") is None
            assert rig.database.totals.jobs == 2000
            disk.free(0)


@pytest.mark.parametrize(
    ("name", "attempts"), [("SQLITE_FULL", 2), ("ENOSPC", 2), ("SQLITE_IOERR_WRITE", 1)]
)
async def test_a_commit_is_tried_once_more_on_a_full_disk_only(
    tmp_path: Path, name: str, attempts: int
) -> None:
    """A disk that fails for another reason, or stays full, would hold the thread."""
    async with open_rig(tmp_path / "journal.db", tuning=_NO_MAINTENANCE) as rig:

        def fail() -> sqlite3.Error:
            error = sqlite3.OperationalError("fails")
            error.sqlite_errorname = name
            error.sqlite_errorcode = getattr(sqlite3, name, 0)
            return error

        rig.database.write_error = fail
        rig.database.probe = lambda: None  # type: ignore[method-assign]
        with pytest.raises(RefusedError, match="fails"):
            await accept(rig, 1, b"1\n", 1)
        assert rig.database.failures == attempts
        rig.database.write_error = None
