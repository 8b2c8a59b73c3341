"""Files of the journal that are deleted or replaced while it is open."""

from __future__ import annotations

import os
import shutil
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.journal import Tuning
from payloadd.journal.sqlite.operations import Seal, Stage
from payloadd.journal.sqlite.schema import FILE
from payloadd.journal.sqlite.segments import FOLDER
from tests.journal.sqlite.damaging import verified
from tests.journal.sqlite.lost_files import (
    FILES,
    NEVER,
    QUICK,
    SQLITE,
    each_file,
    left_by_a_kill,
    move,
    refused,
)
from tests.support.journal import (
    append,
    batch,
    contents,
    id_of,
    job,
    open_rig,
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
async def test_requests_are_refused_until_the_files_are_moved_back(
    path: Path, grace: Callable[[float], None], names: tuple[str, ...], tmp_path: Path
) -> None:
    """A client would get a 202 for payloads that are gone with the process."""
    grace(NEVER)
    async with open_rig(path, tuning=QUICK) as rig:
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


@pytest.mark.parametrize("names", [FILES["database"], FILES["log"]], ids=["database", "log"])
async def test_a_commit_into_a_deleted_file_is_rolled_back(
    path: Path, grace: Callable[[float], None], names: tuple[str, ...], tmp_path: Path
) -> None:
    """The client of the very first request after the deletion would get a 202."""
    grace(NEVER)
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


async def test_what_is_stored_meanwhile_is_not_stored_again(
    path: Path, grace: Callable[[float], None], tmp_path: Path
) -> None:
    """A journal that is moved back would bring back what was stored in between."""
    grace(NEVER)
    async with open_rig(path, tuning=QUICK) as rig:
        await rig.accept(1, count=6)
        jobs = [rig.channel.receive_nowait() for _ in range(6)]
        move(SQLITE, path.parent, tmp_path / "moved")
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
    grace(NEVER)
    async with open_rig(path, tuning=QUICK) as rig:
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


async def test_the_end_of_the_daemon_does_not_wait_for_the_files(
    path: Path, grace: Callable[[float], None]
) -> None:
    """A daemon that is stopped in the meantime would lose what it has not uploaded."""
    grace(NEVER)
    async with open_rig(path, tuning=QUICK) as rig:
        await rig.accept(1, count=3)
        shutil.rmtree(path.parent)
    with closing(Database(path)) as database:
        assert contents(database.page(0, 99, 999)) == contents([job(1), job(2), job(3)])


async def test_the_daemon_ends_although_a_file_is_in_the_place_of_its_folder(
    path: Path, grace: Callable[[float], None]
) -> None:
    """The daemon could not be stopped."""
    grace(NEVER)
    async with open_rig(path, tuning=QUICK) as rig:
        await rig.accept(1)
        shutil.rmtree(path.parent)
        path.parent.touch()
