"""Files of the journal that are deleted or replaced while it is open."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.errors import RefusedError, StartError
from payloadd.journal.api import Receipt
from payloadd.journal.sqlite import high_water_record
from payloadd.journal.sqlite.damage import CODE
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.files_in_use import FilesInUse
from payloadd.journal.sqlite.journal import Tuning
from payloadd.journal.sqlite.lock import StateDirLock
from payloadd.journal.sqlite.offline import Inspection
from payloadd.journal.sqlite.operations import Append, Seal, Settle, Stage
from payloadd.journal.sqlite.schema import FILE
from payloadd.journal.sqlite.segments import FOLDER
from tests.journal.sqlite.damaging import verified
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

    from tests.support.journal import JournalRig

_QUICK: Final = Tuning(retry_interval=0.02, maintenance_interval=0.02)
_NEVER: Final = 1e9
_SQLITE: Final = (FILE, f"{FILE}-wal", f"{FILE}-shm")
_FILES: Final = {
    "database": (FILE,),
    "log": (f"{FILE}-wal",),
    "index": (f"{FILE}-shm",),
    "sqlite": _SQLITE,
    "segments": (FOLDER,),
    "mark": ("journal.high",),
    "all": (*_SQLITE, FOLDER, "journal.high"),
}

each_file = pytest.mark.parametrize("names", _FILES.values(), ids=_FILES)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a journal in a STATE_DIR of its own."""
    folder = tmp_path / "state"
    folder.mkdir()
    return folder / FILE


@pytest.fixture
def grace(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that sets the time in which files may be moved back."""
    return lambda seconds: monkeypatch.setattr(FilesInUse, "grace", seconds)


def move(names: tuple[str, ...], source: Path, target: Path) -> None:
    """Move some files from one folder into another."""
    target.mkdir(exist_ok=True)
    for name in names:
        (source / name).rename(target / name)


def rename(source: Path, target: Path) -> None:
    """Rename a file, in the place of another one."""
    source.replace(target)


def delete(names: tuple[str, ...], folder: Path) -> None:
    """Delete some files."""
    for name in names:
        shutil.rmtree(folder / name) if name == FOLDER else (folder / name).unlink()


def left_by_a_kill(folder: Path, target: Path) -> Path:
    """Return the database file of a copy of STATE_DIR, as a killed process leaves it."""
    shutil.copytree(folder, target)
    return target / FILE


async def refused(rig: JournalRig) -> str:
    """Return why a request is refused; AssertionError if it is accepted."""
    with pytest.raises(RefusedError) as caught:
        await rig.accept(900)
    assert caught.value.code == "DISK_ERROR"
    return caught.value.detail


@pytest.mark.usefixtures("all_large")
@each_file
async def test_requests_are_refused_until_the_files_are_moved_back(
    path: Path, grace: Callable[[float], None], names: tuple[str, ...], tmp_path: Path
) -> None:
    """A client would get a 202 for payloads that are gone with the process."""
    grace(_NEVER)
    async with open_rig(path, tuning=_QUICK) as rig:
        await rig.accept(1, count=3)
        move(names, path.parent, tmp_path / "moved")
        # Without a request: /readyz says it too.
        await until(lambda: "journal" in rig.health.troubles)
        assert "deleted or replaced" in await refused(rig)
        assert rig.health.troubles["journal"].code == "FILE_GONE"
        move(names, tmp_path / "moved", path.parent)
        await until(lambda: not rig.health.troubles)
        await rig.accept(4, count=2)
        copy = left_by_a_kill(path.parent, tmp_path / "left")
    with closing(Database(copy)) as database:
        assert contents(database.page(0, 99, 999)) == contents([job(n) for n in range(1, 6)])
        assert database.damaged_payloads == 0


@pytest.mark.parametrize("names", [_FILES["database"], _FILES["log"]], ids=["database", "log"])
async def test_a_commit_into_a_deleted_file_is_rolled_back(
    path: Path, grace: Callable[[float], None], names: tuple[str, ...], tmp_path: Path
) -> None:
    """The client of the very first request after the deletion would get a 202."""
    grace(_NEVER)
    tuning = Tuning(retry_interval=0.02, maintenance_interval=999)
    async with open_rig(path, tuning=tuning) as rig:
        await rig.accept(1, b"key")
        move(names, path.parent, tmp_path / "moved")
        await refused(rig)
        assert rig.database.totals.jobs == 1
        move(names, tmp_path / "moved", path.parent)
        await until(lambda: not rig.health.troubles)
        # A key of a refused request is not known.
        await rig.accept(900, b"other")
        assert contents(rig.database.page(0, 99, 999)) == contents(
            [job(1), job(2)._replace(id=id_of(900), lines=b"900\n")]
        )


def test_a_step_of_a_large_request_into_a_deleted_file_is_rolled_back(path: Path) -> None:
    """The rows of a request that was refused would be found by the next start."""
    with closing(Database(path)) as database:
        request = append(1, count=4)
        path.unlink()
        with pytest.raises(Exception, match="deleted or replaced"):
            database.commit([Stage(request, 0, 2)])
        assert database.staging.range is None


@pytest.mark.usefixtures("all_large")
@each_file
async def test_a_journal_that_was_deleted_is_written_again(
    path: Path, grace: Callable[[float], None], names: tuple[str, ...], tmp_path: Path
) -> None:
    """Payloads that were acknowledged would be lost with the process, or stored twice."""
    grace(0.1)
    async with open_rig(path, tuning=_QUICK) as rig:
        await rig.accept(1, b"key", count=9)
        jobs = [rig.channel.receive_nowait() for _ in range(9)]
        await rig.journal.seal(batch(*jobs[:2]))
        rig.journal.settle(batch(jobs[2], sealed=False))
        rig.accounting.settle(batch(jobs[2], sealed=False))
        rig.journal.bury(batch(jobs[3], sealed=False), "KeyTooLong", "too long")
        rig.accounting.bury(batch(jobs[3], sealed=False))
        await rig.journal.pulse()
        delete(names, path.parent)
        await until(lambda: "journal" in rig.health.troubles)
        await until(lambda: not rig.health.troubles)
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
    rig = make_rig(path, max_jobs=5, tuning=_QUICK)
    async with rig.journal.running():
        for number in range(1, 301, 10):
            await rig.accept(number, count=10)
        shutil.rmtree(path.parent)
        await until(lambda: "journal" in rig.health.troubles)
        await until(lambda: not rig.health.troubles)
        copy = left_by_a_kill(path.parent, tmp_path / "left")
    await rig.journal.aclose()
    with closing(Database(copy)) as database:
        assert contents(database.page(0, 999, 9999)) == contents(
            [job(number) for number in range(1, 301)]
        )


async def test_what_is_stored_meanwhile_is_not_stored_again(
    path: Path, grace: Callable[[float], None], tmp_path: Path
) -> None:
    """A journal that is moved back would bring back what was stored in between."""
    grace(_NEVER)
    async with open_rig(path, tuning=_QUICK) as rig:
        await rig.accept(1, count=6)
        jobs = [rig.channel.receive_nowait() for _ in range(6)]
        move(_SQLITE, path.parent, tmp_path / "moved")
        await refused(rig)
        await rig.journal.seal(batch(*jobs[:3]))
        rig.journal.settle(batch(*jobs[:3]))
        await rig.journal.seal(batch(*jobs[3:5]))
        await until(lambda: rig.database.totals.jobs == 3)
        await rig.journal.pulse()
        copy = left_by_a_kill(tmp_path / "moved", tmp_path / "left")
    with closing(Database(copy)) as database:
        assert contents(sealed(database, 4).jobs) == contents([job(4), job(5)])
        assert contents(database.page(0, 99, 999)) == contents([job(6)])


async def test_another_journal_in_the_place_is_kept_under_another_name(
    path: Path, grace: Callable[[float], None], tmp_path: Path
) -> None:
    """The payloads in a journal that an operator has restored would be deleted."""
    other = tmp_path / "other" / FILE
    other.parent.mkdir()
    with closing(Database(other)) as database:
        database.commit([append(500, count=2)])
    grace(0.0)
    async with open_rig(path, tuning=_QUICK) as rig:
        await rig.accept(1, count=2)
        rename(other, path)
        await until(lambda: "journal" in rig.health.troubles)
        await until(lambda: not rig.health.troubles)
        await rig.accept(3)
        # The file that was used before is moved back too late: it is old by now.
        rename(path, tmp_path / "ours")
        await until(lambda: "journal" in rig.health.troubles)
        await until(lambda: not rig.health.troubles)
        rename(tmp_path / "ours", path)
        await until(lambda: "journal" in rig.health.troubles)
        await until(lambda: not rig.health.troubles)
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
    async with open_rig(path, tuning=_QUICK) as rig:
        await rig.accept(1)
        shutil.rmtree(path.parent / FOLDER)
        (path.parent / FOLDER).mkdir()
        foreign = path.parent / FOLDER / f"{2:020}.ndjson"
        foreign.write_bytes(b"foreign\n")
        await until(lambda: "journal" in rig.health.troubles)
        await until(lambda: not rig.health.troubles)
        await rig.accept(2)
        kept = path.parent / f"{FOLDER}.replaced-1" / foreign.name
        assert kept.read_bytes() == b"foreign\n"


@pytest.mark.usefixtures("all_large")
def test_a_current_segment_that_was_deleted_takes_no_more_payloads(
    path: Path, tmp_path: Path
) -> None:
    """A client would get a 202 for payloads that are gone with the process."""
    with closing(Database(path)) as database:
        database.commit([append(1)])
        (path.parent / FOLDER / f"{1:020}.ndjson").unlink()
        database.commit([append(2)])
        copy = left_by_a_kill(path.parent, tmp_path / "left")
    with closing(Database(copy)) as database:
        assert contents(database.page(0, 99, 999)) == contents([job(2)])
        assert database.damaged_payloads == 1


@pytest.mark.usefixtures("all_large")
def test_a_segment_that_is_deleted_while_it_is_synced_takes_no_payloads(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client would get a 202 for payloads that are gone with the process."""
    segment = path.parent / FOLDER / f"{1:020}.ndjson"
    with closing(Database(path)) as database:
        with monkeypatch.context() as patches:
            patches.setattr(os, "fdatasync", lambda _: segment.unlink())
            with pytest.raises(Exception, match="deleted or replaced"):
                database.commit([append(1)])
        database.commit([append(2)])
        found = database.page(0, 99, 999)
    assert [one.id for one in found] == [id_of(2)]


@pytest.mark.usefixtures("all_large")
async def test_payloads_of_missing_segments_are_no_dead_letters_in_the_grace(
    path: Path, grace: Callable[[float], None], tmp_path: Path
) -> None:
    """A folder that is moved away for a second would cost all payloads in it."""
    with closing(Database(path)) as database:
        database.commit([append(1, count=4), Seal(batch(job(3), job(4)))])
    grace(_NEVER)
    async with open_rig(path, tuning=_QUICK) as rig:
        move((FOLDER,), path.parent, tmp_path / "moved")
        with pytest.raises(Exception, match="deleted or replaced"):
            rig.database.page(0, 99, 999)
        with pytest.raises(Exception, match="deleted or replaced"):
            rig.database.sealed(3)
        move((FOLDER,), tmp_path / "moved", path.parent)
        assert contents(await rig.journal.page(0, 99, 999)) == contents([job(1), job(2)])
        found = await rig.journal.sealed()
        assert found is not None
        assert contents(found.jobs) == contents([job(3), job(4)])
    assert verified(path) == []


@pytest.mark.usefixtures("all_large")
async def test_payloads_only_in_deleted_segments_become_dead_letters(
    path: Path, grace: Callable[[float], None]
) -> None:
    """They would be lost without a word."""
    with closing(Database(path)) as database:
        database.commit([append(1, count=4)])
    grace(0.0)
    async with open_rig(path, tuning=_QUICK) as rig:
        shutil.rmtree(path.parent / FOLDER)
        await until(lambda: "journal" in rig.health.troubles)
        await until(lambda: not rig.health.troubles)
        assert await rig.journal.page(0, 99, 999) == []
    with Inspection.open(path.parent) as inspection:
        assert {(one.code, one.payloads) for one in inspection.dead()} == {(CODE, 4)}


async def test_a_failure_to_write_the_journal_again_is_reported(
    path: Path, grace: Callable[[float], None]
) -> None:
    """An operator would not know why requests are still refused."""
    grace(0.0)
    async with open_rig(path, tuning=_QUICK) as rig:
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


async def test_the_end_of_the_daemon_does_not_wait_for_the_files(
    path: Path, grace: Callable[[float], None]
) -> None:
    """A daemon that is stopped in the meantime would lose what it has not uploaded."""
    grace(_NEVER)
    async with open_rig(path, tuning=_QUICK) as rig:
        await rig.accept(1, count=3)
        shutil.rmtree(path.parent)
    with closing(Database(path)) as database:
        assert contents(database.page(0, 99, 999)) == contents([job(1), job(2), job(3)])


async def test_the_lock_is_taken_again(path: Path, grace: Callable[[float], None]) -> None:
    """A second daemon could open the same journal."""
    grace(0.0)
    lock = StateDirLock(path.parent)
    async with open_rig(path, tuning=_QUICK) as rig:
        rig.database.lock = lock
        await rig.accept(1)
        lock.path.unlink()
        await until(lambda: "journal" in rig.health.troubles)
        await until(lambda: not rig.health.troubles)
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


async def test_the_daemon_ends_although_a_file_is_in_the_place_of_its_folder(
    path: Path, grace: Callable[[float], None]
) -> None:
    """The daemon could not be stopped."""
    grace(_NEVER)
    async with open_rig(path, tuning=_QUICK) as rig:
        await rig.accept(1)
        shutil.rmtree(path.parent)
        path.parent.touch()
