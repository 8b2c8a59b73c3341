"""A journal is opened by one process, outlives it, and remembers how keys were made."""

from __future__ import annotations

import os
import stat
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from payloadd.config import settings as config
from payloadd.errors import PayloaddError, StartError
from payloadd.journal.open import open_journal
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.disk_reserve import DiskReserve
from payloadd.journal.sqlite.lock import lock, owner
from payloadd.journal.sqlite.offline import Inspection
from payloadd.journal.sqlite.schema import FILE
from payloadd.journal.sqlite.segment_files import FOLDER
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
    """What a journal is opened with."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.settings = config.load({"STATE_DIR": str(folder), **environ})
        self.metrics = Metrics()
        self.accounting = Accounting(self.metrics)
        self.channel = JobChannel(100, 10**6)
        self.health = Health()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[tuple[OpenedJournal, Intake]]:
        """Open the journal."""
        feeder = QueueFeeder(self.channel, self.accounting)
        listener = PipelineListener(self.channel, feeder, self.accounting, self.metrics)
        async with open_journal(self.settings, listener, self.health, self.metrics) as opened:
            yield opened, Intake(opened.journal, self.health, self.settings)


async def test_what_is_not_stored_is_there_at_the_next_start(tmp_path: Path) -> None:
    """A restart would lose the backlog."""
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
        assert opening.metrics.registry.get_sample_value("payloadd_journal_jobs") == 2


async def test_keys_follow_the_settings_of_their_time(tmp_path: Path) -> None:
    """After a crash and a new KEY_TEMPLATE the replay would be a second object."""
    async with Opening(tmp_path).open() as (_, intake):
        first = await intake.accept([b"1"])
    opening = Opening(tmp_path, KEY_TEMPLATE="new/{id}", COMPRESSION="zstd")
    async with opening.open() as (opened, intake):
        second = await intake.accept([b"2"])
        page = await opened.journal.page(0, 10, 1000)
        keys = [opened.layouts.batch([job]).key for job in page]
    assert keys[0].endswith(f"/{first.id}.ndjson")
    assert keys[1] == f"new/{second.id}.zst"


async def test_one_process_at_a_time(tmp_path: Path) -> None:
    """Two daemons on one journal would store everything twice."""
    assert owner(tmp_path) is None
    async with Opening(tmp_path).open():
        assert owner(tmp_path) == os.getpid()
        with pytest.raises(StartError, match=f"in use by another payloadd .process {os.getpid()}"):
            async with Opening(tmp_path).open():
                pass
    assert owner(tmp_path) is None


def test_the_folder_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal of the first day would be synced, and its folder gone with what is in it."""
    synced: set[Path] = set()

    def sync(descriptor: int) -> None:
        synced.add(Path(f"/proc/self/fd/{descriptor}").readlink())

    monkeypatch.setattr(os, "fsync", sync)
    os.close(lock(tmp_path / "state" / "payloadd"))
    assert {tmp_path, tmp_path / "state"} <= synced


def test_the_folder_is_the_users_alone(tmp_path: Path) -> None:
    """Other users would see how many payloads wait, and when."""
    before = os.umask(0)
    try:
        os.close(lock(tmp_path / "state"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


async def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """A traceback tells an administrator nothing."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="cannot use STATE_DIR"):
        async with Opening(tmp_path / "file").open():
            pass
    (tmp_path / "journal.db").write_text("this is no database, and longer than a header" * 9)
    with pytest.raises(StartError, match=r"cannot open the journal .*journal.db"):
        async with Opening(tmp_path).open():
            pass


async def test_memory_leaves_nothing_on_disk(tmp_path: Path) -> None:
    """DURABILITY=memory on a read-only machine would not start."""
    opening = Opening(tmp_path / "never", DURABILITY="memory")
    async with opening.open() as (opened, intake):
        await intake.accept([b"1"])
        assert await opened.journal.sealed() is None
        assert await opened.journal.page(0, 1, 1) == []
    assert not (tmp_path / "never").exists()
    assert opening.accounting.lost == 1


async def test_an_administrator_can_look_inside(tmp_path: Path) -> None:
    """Dead letters that nobody can see are lost ones."""
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
        with pytest.raises(PayloaddError, match="no dead letter nobody"):
            inspection.drop([str(receipt.id), "nobody"])
        assert inspection.retry([str(receipt.id)]) == 1
        assert inspection.retry([]) == 2
        assert inspection.drop([str(receipt.id)]) == 1
        assert len(inspection.dead()) == 1


@pytest.mark.parametrize(
    ("name", "reason"), [("nowhere", "no journal in"), ("folder", "cannot read the journal")]
)
def test_a_journal_that_cannot_be_looked_into_is_named(
    tmp_path: Path, name: str, reason: str
) -> None:
    """An administrator would search the disk for damage where STATE_DIR is not set."""
    (tmp_path / "folder" / "journal.db").mkdir(parents=True)
    with pytest.raises(PayloaddError, match=f"{reason} .*{name}"), Inspection.open(tmp_path / name):
        pass


@pytest.mark.parametrize(
    ("name", "open_"),
    [
        ("journal.lock", lock),
        ("journal.lock", owner),
        ("journal.reserve", DiskReserve),
        (FOLDER, lambda folder: Database(folder / FILE)),
        (f"{FOLDER}/{1:020}.ndjson", lambda folder: Database(folder / FILE)),
    ],
)
def test_symbolic_links_are_not_followed(
    tmp_path: Path, name: str, open_: Callable[[Path], object]
) -> None:
    """Another user of a shared folder would have the daemon write to a file of its choice."""
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
