"""Whatever a power cut leaves of the files: nothing acknowledged is lost, no loss is made up."""

from __future__ import annotations

import re
import shutil
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.journal.sqlite import high_water, identity
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.schema import FILE, look_into
from payloadd.journal.sqlite.verify import verify
from tests.crash.power_cut import Disk, can_record, record
from tests.support.tools import give_up, need_tools

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.crash.power_cut import Call
    from tests.support.fuzz import Fuzz

_NUMBER: Final = re.compile(rb'{"n":(\d+),')
_WORKS: Final = 2
"""Recorded processes."""


@dataclass
class Told:
    """What the process had told when the power was cut."""

    taking: set[int] = field(default_factory=set)
    taken: set[int] = field(default_factory=set)
    settling: set[int] = field(default_factory=set)
    settled: set[int] = field(default_factory=set)

    def note(self, call: Call) -> None:
        """Take note of what it tells."""
        if call.kind == "told":
            what, numbers = call.told
            getattr(self, what).update(numbers)


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, list[Call]]]:
    """Return what some processes did, each with its folder."""
    need_tools("strace")
    if not can_record():
        give_up("strace may not trace a process here")
    works = []
    for seed in range(_WORKS):
        folder = tmp_path_factory.mktemp("work") / "state"
        folder.mkdir()
        works.append((folder, record(folder, _command(folder, seed))))
    return works


def _command(folder: Path, seed: int) -> Sequence[str]:
    return ("-m", "tests.crash.power_cut_work", str(folder), str(seed))


@pytest.fixture(autouse=True)
def another_boot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let each start be one of a machine that was started again."""
    monkeypatch.setattr(high_water, "_BOOT_ID", tmp_path / "no-such-file")


def replay(folder: Path, calls: Sequence[Call], end: int) -> tuple[Disk, Told]:
    """Return the disk and what was told behind ``end`` calls."""
    disk, told = Disk(folder), Told()
    for call in calls[:end]:
        disk.apply(call)
        told.note(call)
    return disk, told


def numbers_in(database: Database) -> Iterator[int]:
    """Yield the number of each payload that waits."""
    for first in database.sealed_firsts:
        batch = database.sealed(first)
        if batch is not None:
            for job in batch.jobs:
                yield int(_NUMBER.match(job.lines)[1])  # type: ignore[index]
    after = 0
    while page := database.page(after, 20, 10**6):
        after = page[-1].seq
        for job in page:
            yield int(_NUMBER.match(job.lines)[1])  # type: ignore[index]


def test_a_power_cut_loses_nothing_and_makes_up_no_loss(
    works: list[tuple[Path, list[Call]]], tmp_path: Path, fuzz: Fuzz
) -> None:
    """A payload behind a 202 would be gone, or an operator be told of payloads that are not."""
    identities: dict[Path, set[bytes | None]] = {}
    for chance in fuzz.cases():
        folder, calls = chance.choice(works)
        disk, told = replay(folder, calls, chance.randrange(len(calls) + 1))
        image = tmp_path / "image"
        shutil.rmtree(image, ignore_errors=True)
        image.mkdir()
        disk.leave(image, chance)
        with closing(Database(image / FILE)) as database:
            assert database.high_water.damage is None
            assert not database.high_water.unreadable
            assert database.findings.take() == []
            found = list(numbers_in(database))
            assert database.findings.take() == []
            if told.taken:
                identities.setdefault(folder, set()).add(identity.read(database._connection))
        assert len(found) == len(set(found))
        assert told.taken - told.settling <= set(found) <= told.taking - told.settled
        with closing(look_into(image / FILE)) as connection:
            assert verify(connection, image) == []
    assert all(len(found) == 1 for found in identities.values())


def test_a_log_that_is_lost_with_the_power_is_counted(
    works: list[tuple[Path, list[Call]]], tmp_path: Path, fuzz: Fuzz
) -> None:
    """A disk that lies about its syncs would cost payloads without a word."""
    counted = 0
    for chance in fuzz.cases():
        folder, calls = chance.choice(works)
        disk, told = replay(folder, calls, chance.randrange(len(calls) + 1))
        if not disk.is_certain(FILE):
            continue
        image = tmp_path / "image"
        shutil.rmtree(image, ignore_errors=True)
        image.mkdir()
        disk.leave(image, chance)
        (image / f"{FILE}-wal").unlink(missing_ok=True)
        mark = high_water.read(image / FILE)
        with closing(Database(image / FILE)) as database:
            damage = database.high_water.damage
            missing = told.taken - told.settling - set(numbers_in(database))
            accepted = database.totals.accepted
        if mark is None:
            assert not missing
            continue
        if damage is None:
            # What was lost behind the last record that is on the disk cannot be known.
            assert mark.accepted <= accepted or not missing
            continue
        counted += 1
        assert damage.at_least or not damage.payloads
        assert not damage.foreign
        # Up to the record, and what was stored behind it counts too.
        assert damage.payloads <= len(told.taking)
        under_way = (told.taking - told.taken) | (told.settling - told.settled)
        held = len(told.taken - told.settled)
        if not under_way and (mark.accepted, mark.held) == (len(told.taken), held):
            assert damage.payloads == len(missing)
    assert counted
