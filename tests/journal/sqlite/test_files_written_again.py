"""Files of an open journal that were deleted or replaced are written again after the grace."""

from __future__ import annotations

import shutil
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from payloadd.errors import StartError
from payloadd.journal.api import Receipt
from payloadd.journal.sqlite import high_water_record
from payloadd.journal.sqlite.damage import CODE
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.lock import StateDirLock
from payloadd.journal.sqlite.offline import Inspection
from payloadd.journal.sqlite.operations import Append, Settle
from payloadd.journal.sqlite.schema import FILE
from payloadd.journal.sqlite.segments import FOLDER
from tests.journal.sqlite.lost_files import (
    QUICK,
    delete,
    each_file,
    left_by_a_kill,
    refused,
    rename,
    written_again,
)
from tests.support.journal import (
    append,
    batch,
    contents,
    id_of,
    job,
    make_rig,
    open_rig,
    part,
    sealed,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a journal in a STATE_DIR of its own."""
    folder = tmp_path / "state"
    folder.mkdir()
    return folder / FILE


@pytest.mark.usefixtures("all_large")
@each_file
async def test_a_journal_that_was_deleted_is_written_again(
    path: Path, grace: Callable[[float], None], names: tuple[str, ...], tmp_path: Path
) -> None:
    """Payloads that were acknowledged would be lost with the process, or stored twice."""
    grace(0.1)
    async with open_rig(path, tuning=QUICK) as rig:
        await rig.accept(1, b"key", count=9)
        jobs = [rig.channel.receive_nowait() for _ in range(9)]
        await rig.journal.seal(batch(*jobs[:2]))
        rig.journal.settle(batch(jobs[2], sealed=False))
        rig.accounting.settle(batch(jobs[2], sealed=False))
        rig.journal.bury(batch(jobs[3], sealed=False), "KeyTooLong", "too long")
        rig.accounting.bury(batch(jobs[3], sealed=False))
        await rig.journal.pulse()
        delete(names, path.parent)
        await written_again(rig)
        await rig.accept(10)
        with pytest.raises(Exception, match="other payloads"):
            await rig.accept(11, b"key")
        copy = left_by_a_kill(path.parent, tmp_path / "left")
    with closing(Database(copy)) as database:
        assert database.high_water.damage is None
        assert contents(sealed(database, 1).jobs) == contents([job(1), job(2)])
        assert contents(database.page(0, 99, 999)) == contents([job(n) for n in range(5, 11)])
        assert database.totals.payloads == 8
        assert database.totals.next == 11
        known = append(20, b"key", count=9, like=1)
        database.commit([known])
        assert known.earlier == Receipt(id_of(1), 9)
    with Inspection.open(copy.parent) as inspection:
        assert [(one.code, one.payloads) for one in inspection.dead()] == [("KeyTooLong", 1)]


async def test_the_backlog_of_a_deleted_file_is_kept(
    path: Path, grace: Callable[[float], None], tmp_path: Path
) -> None:
    """Only what is in memory would survive, a small part of a large backlog."""
    grace(0.0)
    rig = make_rig(path, max_jobs=5, tuning=QUICK)
    async with rig.journal.running():
        for number in range(1, 301, 10):
            await rig.accept(number, count=10)
        shutil.rmtree(path.parent)
        await written_again(rig)
        copy = left_by_a_kill(path.parent, tmp_path / "left")
    await rig.journal.aclose()
    with closing(Database(copy)) as database:
        assert contents(database.page(0, 999, 9999)) == contents(
            [job(number) for number in range(1, 301)]
        )


async def test_another_journal_in_the_place_is_kept_under_another_name(
    path: Path, grace: Callable[[float], None], tmp_path: Path
) -> None:
    """The payloads in a journal that an operator has restored would be deleted."""
    other = tmp_path / "other" / FILE
    other.parent.mkdir()
    with closing(Database(other)) as database:
        database.commit([append(500, count=2)])
    grace(0.0)
    async with open_rig(path, tuning=QUICK) as rig:
        await rig.accept(1, count=2)
        rename(other, path)
        await written_again(rig)
        await rig.accept(3)
        # The file that was used before is moved back too late: it is old by now.
        rename(path, tmp_path / "ours")
        await written_again(rig)
        rename(tmp_path / "ours", path)
        await written_again(rig)
        await rig.accept(4)
        copy = left_by_a_kill(path.parent, tmp_path / "left")
    with closing(Database(copy)) as database:
        assert contents(database.page(0, 99, 999)) == contents([job(n) for n in range(1, 5)])
    first = path.with_name(f"{FILE}.replaced-1")
    second = path.with_name(f"{FILE}.replaced-2")
    assert second.exists()
    (tmp_path / "first").mkdir()
    first.rename(tmp_path / "first" / FILE)
    with closing(Database(tmp_path / "first" / FILE)) as database:
        assert [one.id for one in database.page(0, 99, 999)] == [id_of(500), id_of(501)]


@pytest.mark.usefixtures("all_large")
async def test_segments_of_another_journal_are_not_written_over(
    path: Path, grace: Callable[[float], None]
) -> None:
    """The payloads of another journal would be deleted: segments have the same names."""
    grace(0.0)
    async with open_rig(path, tuning=QUICK) as rig:
        await rig.accept(1)
        shutil.rmtree(path.parent / FOLDER)
        (path.parent / FOLDER).mkdir()
        foreign = path.parent / FOLDER / f"{2:020}.ndjson"
        foreign.write_bytes(b"foreign\n")
        await written_again(rig)
        await rig.accept(2)
        kept = path.parent / f"{FOLDER}.replaced-1" / foreign.name
        assert kept.read_bytes() == b"foreign\n"


@pytest.mark.usefixtures("all_large")
async def test_payloads_only_in_deleted_segments_become_dead_letters(
    path: Path, grace: Callable[[float], None]
) -> None:
    """They would be lost without a word."""
    with closing(Database(path)) as database:
        database.commit([append(1, count=4)])
    grace(0.0)
    async with open_rig(path, tuning=QUICK) as rig:
        shutil.rmtree(path.parent / FOLDER)
        await written_again(rig)
        assert await rig.journal.page(0, 99, 999) == []
    with Inspection.open(path.parent) as inspection:
        assert {(one.code, one.payloads) for one in inspection.dead()} == {(CODE, 4)}


async def test_a_failure_to_write_the_journal_again_is_reported(
    path: Path, grace: Callable[[float], None]
) -> None:
    """An operator would not know why requests are still refused."""
    grace(0.0)
    async with open_rig(path, tuning=QUICK) as rig:
        await rig.accept(1)
        shutil.rmtree(path.parent)
        path.parent.touch()  # a file in the place of STATE_DIR
        await until(
            lambda: (
                "journal" in rig.health.troubles
                and rig.health.troubles["journal"].code == "FILE_NOT_WRITTEN"
            )
        )
        assert "cannot be written again" in await refused(rig)
        path.parent.unlink()
        await until(lambda: not rig.health.troubles)
        await rig.accept(2)


async def test_the_lock_is_taken_again(path: Path, grace: Callable[[float], None]) -> None:
    """A second daemon could open the same journal."""
    grace(0.0)
    lock = StateDirLock(path.parent)
    async with open_rig(path, tuning=QUICK) as rig:
        rig.database.lock = lock
        await rig.accept(1)
        lock.path.unlink()
        await written_again(rig)
        with pytest.raises(StartError, match="in use"):
            StateDirLock(path.parent)
        # Another process was faster.
        lock.path.unlink()
        other = StateDirLock(path.parent)
        await until(lambda: "in use by another" in str(rig.health.troubles.get("journal")))
        await refused(rig)
        other.close()
        await until(lambda: not rig.health.troubles)
        await rig.accept(2)
    lock.close()


def test_the_mark_goes_on_in_a_new_file(path: Path) -> None:
    """The next start would not notice that the log is lost."""
    with closing(Database(path)) as database:
        database.commit([append(1)])
        path.with_suffix(".high").unlink()
        assert database.missing_file() == str(path.with_suffix(".high"))
        database.files.grace = 0.0
        assert database.restore_files()
        database.commit([Append(Receipt(id_of(2), 1), [part(2)])])
        database.commit([Settle(batch(job(1), sealed=False))])
        record = high_water_record.read(path)
        assert record is not None
        assert (record.accepted, record.held) == (2, 1)
