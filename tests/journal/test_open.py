"""Open a journal: one process at a time, jobs and layouts survive, errors name their cause."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from payloadd.config import settings as config
from payloadd.errors import PayloaddError, StartError
from payloadd.journal.open import open_journal
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.disk_reserve import DiskReserve
from payloadd.journal.sqlite.lock import lock, owner
from payloadd.journal.sqlite.offline import Inspection, try_journal
from payloadd.journal.sqlite.schema import FILE, connect
from payloadd.journal.sqlite.segments import FOLDER
from payloadd.observe.health import Health
from payloadd.observe.metrics import Metrics
from payloadd.pipeline.accounting import Accounting
from payloadd.pipeline.intake import Intake
from payloadd.pipeline.listener import PipelineListener
from payloadd.pipeline.queue import JobChannel
from payloadd.pipeline.refill import QueueFeeder
from tests.support.journal import batch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from payloadd.journal.open import OpenedJournal


class Opening:
    """The arguments that a journal is opened with; each payload is an object of its own."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.settings = config.load(
            {"STATE_DIR": str(folder), "BATCH_MAX_PAYLOADS": "1", **environ}
        )
        self.metrics = Metrics()
        self.accounting = Accounting(self.metrics)
        self.channel = JobChannel(100, 10**6)
        self.health = Health()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[tuple[OpenedJournal, Intake]]:
        """Open the journal while the body runs."""
        feeder = QueueFeeder(self.channel, self.accounting)
        listener = PipelineListener(self.channel, feeder, self.accounting, self.metrics)
        async with open_journal(self.settings, listener, self.health, self.metrics) as opened:
            yield opened, Intake(opened.journal, self.health, self.settings)


async def test_payloads_that_are_not_stored_are_there_at_the_next_start(tmp_path: Path) -> None:
    """Otherwise a restart loses the backlog."""
    opening = Opening(tmp_path)
    async with opening.open() as (_, intake):
        await intake.accept([b"1", b"2"])
    assert opening.accounting.journaled == 2
    assert opening.accounting.lost == 0
    opening = Opening(tmp_path)
    async with opening.open() as (opened, _):
        assert opening.accounting.found == 2
        page = await opened.journal.page(0, 10, 1000)
        assert [job.lines for job in page] == [b"1\n", b"2\n"]
        assert opening.health.snapshot().journal.jobs == 2


async def test_object_keys_follow_the_settings_under_which_jobs_were_accepted(
    tmp_path: Path,
) -> None:
    """Otherwise a replay after a crash and a new KEY_TEMPLATE makes a second object."""
    async with Opening(tmp_path).open() as (_, intake):
        first = await intake.accept([b"1"])
    opening = Opening(tmp_path, KEY_TEMPLATE="new/{id}", COMPRESSION="zstd")
    async with opening.open() as (opened, intake):
        second = await intake.accept([b"2"])
        page = await opened.journal.page(0, 10, 1000)
        keys = [opened.layouts.batch([job]).key for job in page]
    assert keys[0].endswith(f"/{first.id}.ndjson")
    assert keys[1] == f"new/{second.id}.zst"


async def test_a_second_process_cannot_open_the_journal(tmp_path: Path) -> None:
    """Otherwise two daemons on one journal store every payload twice."""
    assert owner(tmp_path) is None
    async with Opening(tmp_path).open():
        assert owner(tmp_path) == os.getpid()
        with pytest.raises(StartError, match=f"in use by another payloadd .process {os.getpid()}"):
            async with Opening(tmp_path).open():
                pass
    assert owner(tmp_path) is None


def test_new_folders_are_synced_to_their_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a power cut removes the folder together with a journal that was synced."""
    synced: set[Path] = set()

    def sync(descriptor: int) -> None:
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink())

    monkeypatch.setattr(os, "fsync", sync)
    os.close(lock(tmp_path / "state" / "payloadd"))
    assert {tmp_path, tmp_path / "state"} <= synced


def test_only_the_user_may_enter_the_folder(tmp_path: Path) -> None:
    """Otherwise other users see how many payloads wait, and when."""
    before = os.umask(0)
    try:
        os.close(lock(tmp_path / "state"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


async def test_an_unusable_folder_or_file_is_named_in_the_error(tmp_path: Path) -> None:
    """Otherwise an administrator gets a traceback without the path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="cannot use STATE_DIR"):
        async with Opening(tmp_path / "file").open():
            pass
    (tmp_path / "journal.db").write_text("this is no database, and longer than a header" * 9)
    with pytest.raises(StartError, match=r"cannot open the journal .*journal.db"):
        async with Opening(tmp_path).open():
            pass


async def test_memory_durability_writes_nothing_to_the_disk(tmp_path: Path) -> None:
    """Otherwise DURABILITY=memory does not start on a read-only file system."""
    opening = Opening(tmp_path / "never", DURABILITY="memory")
    async with opening.open() as (opened, intake):
        await intake.accept([b"1"])
        assert await opened.journal.sealed() is None
        assert await opened.journal.page(0, 1, 1) == []
    assert not (tmp_path / "never").exists()
    assert opening.accounting.lost == 1


async def test_an_administrator_can_list_print_retry_and_drop_dead_letters(tmp_path: Path) -> None:
    """Dead letters that cannot be listed are lost payloads."""
    opening = Opening(tmp_path)
    async with opening.open() as (opened, intake):
        receipt = await intake.accept([b"1", b"2", b"3"])
        first, second, _ = await opened.journal.page(0, 10, 1000)
        opened.journal.bury(batch(first, sealed=False), "KeyTooLongError", "too long")
        opened.journal.bury(batch(second, sealed=False), "InvalidRequest", "no")

    with Inspection.open(tmp_path) as inspection:
        status = inspection.status()
        assert (status.process, status.payloads, status.dead_letters) == (None, 1, 2)
        dead = inspection.dead()
        assert {letter.code for letter in dead} == {"KeyTooLongError", "InvalidRequest"}
        assert inspection.lines(str(receipt.id)) == b"1\n"
        with pytest.raises(PayloaddError, match="no dead letter unknown"):
            inspection.drop([str(receipt.id), "unknown"])
        assert inspection.retry([str(receipt.id)]) == 1
        assert inspection.retry([]) == 2
        assert inspection.drop([str(receipt.id)]) == 1
        assert len(inspection.dead()) == 1


@pytest.mark.parametrize(
    ("name", "reason"), [("nowhere", "no journal in"), ("folder", "cannot read the journal")]
)
def test_a_journal_that_cannot_be_inspected_is_named_in_the_error(
    tmp_path: Path, name: str, reason: str
) -> None:
    """Otherwise an administrator suspects the disk where only STATE_DIR is not set."""
    (tmp_path / "folder" / "journal.db").mkdir(parents=True)
    with pytest.raises(PayloaddError, match=f"{reason} .*{name}"), Inspection.open(tmp_path / name):
        pass


@pytest.mark.parametrize(
    ("name", "open_"),
    [
        ("journal.lock", lock),
        ("journal.lock", owner),
        ("journal.reserve", DiskReserve),
        (FILE, lambda folder: Database(folder / FILE)),
        (FILE, lambda folder: connect(folder / FILE)),
        (FILE, lambda folder: Inspection.open(folder).__enter__()),
        (FILE, try_journal),
        (FOLDER, lambda folder: Database(folder / FILE)),
        (f"{FOLDER}/{1:020}.ndjson", lambda folder: Database(folder / FILE)),
    ],
)
def test_symbolic_links_are_not_followed(
    tmp_path: Path, name: str, open_: Callable[[Path], object]
) -> None:
    """Otherwise another user of a shared folder can make the daemon write to any file."""
    target = tmp_path / "target"
    (tmp_path / "state" / name).parent.mkdir(parents=True)
    if name == FOLDER:
        target.mkdir()
    else:
        target.write_bytes(b"precious")
    (tmp_path / "state" / name).symlink_to(target)
    with pytest.raises(StartError, match="symbolic link"):
        open_(tmp_path / "state")
    assert name == FOLDER or target.read_bytes() == b"precious"


def test_a_database_file_that_is_replaced_while_it_is_opened_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user of a shared folder can make the daemon write to any database."""
    target = path.with_name("target")
    with closing(sqlite3.connect(target)) as other:
        other.execute("CREATE TABLE precious (x)")
    open_: Callable[..., sqlite3.Connection] = sqlite3.connect

    def swap(*arguments: Any, **options: Any) -> sqlite3.Connection:  # noqa: ANN401 - those of connect
        path.unlink()
        path.symlink_to(target)
        return open_(*arguments, **options)

    monkeypatch.setattr(sqlite3, "connect", swap)
    with pytest.raises(StartError, match="was replaced while it was opened"):
        connect(path)
    monkeypatch.undo()
    with closing(sqlite3.connect(target)) as other:
        assert other.execute("SELECT name FROM sqlite_schema").fetchall() == [("precious",)]


def test_the_copy_of_a_repair_that_was_killed_is_removed(path: Path) -> None:
    """It would take as much space as the journal until the next repair."""
    unfinished = path.with_name(f"{FILE}.rebuilt")
    unfinished.write_bytes(b"unfinished")
    with closing(Database(path)):
        assert not unfinished.exists()
