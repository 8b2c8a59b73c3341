"""After a power cut no accepted payload is lost, and no loss is reported that did not happen."""

from __future__ import annotations

import re
import shutil
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.journal.sqlite import high_water, high_water_record, identity, stream_rows
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.schema import FILE, open_existing
from payloadd.journal.sqlite.verify import verify
from payloadd.model.streams import STREAM_BITS, first_seq
from tests.crash.power_cut import Disk, can_record, record
from tests.support.fuzz import known_cases
from tests.support.tools import give_up, need_tools

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.crash.power_cut import Call
    from tests.support.fuzz import Fuzz

pytestmark = pytest.mark.no_cover

_NUMBER: Final = re.compile(rb'{"n":(\d+),')
_WORKS: Final = 2
"""Number of recorded processes."""


@dataclass
class Reported:
    """Numbers of payloads that the process had reported before the power cut, by state."""

    accepting: set[int] = field(default_factory=set)
    accepted: set[int] = field(default_factory=set)
    settling: set[int] = field(default_factory=set)
    settled: set[int] = field(default_factory=set)

    def add(self, call: Call) -> None:
        """Add the numbers of a report; ignore other calls."""
        if call.kind == "report":
            state, numbers = call.report
            getattr(self, state).update(numbers)


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, list[Call]]]:
    """Return the folder and the recorded calls of each process."""
    need_tools("strace")
    if not can_record():
        give_up("strace is not allowed to trace a process")
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
    """Make each start a start after a reboot of the machine."""
    monkeypatch.setattr(high_water, "BOOT_ID_FILE", tmp_path / "no-such-file")


def replay(folder: Path, calls: Sequence[Call], end: int) -> tuple[Disk, Reported]:
    """Return the disk and the reports after the first ``end`` calls."""
    disk, reported = Disk(folder), Reported()
    for call in calls[:end]:
        disk.apply(call)
        reported.add(call)
    return disk, reported


def numbers_in(database: Database) -> Iterator[int]:
    """Yield the number of each waiting payload."""
    firsts: list[int] = []
    # One batch of each stream in each call.
    while found := database.sealed_after({first >> STREAM_BITS: first for first in firsts}):
        firsts += found
    for first in firsts:
        batch = database.sealed(first)
        if batch is not None:
            for job in batch.jobs:
                yield int(_NUMBER.match(job.lines)[1])  # type: ignore[index]
    for stream in stream_rows.with_jobs(database._connection):
        after = first_seq(stream)
        while page := database.page(after, 20, 10**6):
            after = page[-1].seq
            for job in page:
                yield int(_NUMBER.match(job.lines)[1])  # type: ignore[index]


def test_a_power_cut_loses_no_payload_and_reports_no_loss(
    works: list[tuple[Path, list[Call]]], tmp_path: Path, fuzz: Fuzz
) -> None:
    """An accepted payload would be lost, or a loss reported that did not happen."""
    identities: dict[Path, set[bytes | None]] = {}
    for chance in fuzz.cases():
        folder, calls = chance.choice(works)
        disk, reported = replay(folder, calls, chance.randrange(len(calls) + 1))
        image = tmp_path / "image"
        shutil.rmtree(image, ignore_errors=True)
        image.mkdir()
        disk.write_image(image, chance)
        with closing(Database(image / FILE)) as database:
            assert database.high_water.damage is None
            assert not database.high_water.unreadable
            assert database.findings.pop_all() == []
            found = list(numbers_in(database))
            assert database.findings.pop_all() == []
            if reported.accepted:
                identities.setdefault(folder, set()).add(identity.read(database._connection))
        assert len(found) == len(set(found))
        assert (
            reported.accepted - reported.settling
            <= set(found)
            <= reported.accepting - reported.settled
        )
        with closing(open_existing(image / FILE)) as connection:
            assert verify(connection, image) == []
    assert all(len(found) == 1 for found in identities.values())


def test_payloads_of_a_log_that_is_lost_in_a_power_cut_are_counted(
    works: list[tuple[Path, list[Call]]], tmp_path: Path, fuzz: Fuzz
) -> None:
    """A disk that ignores syncs would lose payloads without a message."""
    counted = [_loss_is_counted(works, tmp_path / "image", chance) for chance in fuzz.cases()]
    # Some cuts lose nothing: in little time there may be no other.
    more = (_loss_is_counted(works, tmp_path / "image", chance) for chance in known_cases(1000))
    assert any(counted) or any(more)


def _loss_is_counted(
    works: list[tuple[Path, list[Call]]], image: Path, chance: random.Random
) -> bool:
    """Cut the power at a random moment and lose the log; return whether the start reports a loss.

    Raises AssertionError if the report is wrong, or missing.
    """
    folder, calls = chance.choice(works)
    disk, reported = replay(folder, calls, chance.randrange(len(calls) + 1))
    if not disk.is_durable(FILE):
        return False
    shutil.rmtree(image, ignore_errors=True)
    image.mkdir()
    disk.write_image(image, chance)
    (image / f"{FILE}-wal").unlink(missing_ok=True)
    last = high_water_record.read(image / FILE)
    with closing(Database(image / FILE)) as database:
        damage = database.high_water.damage
        missing = reported.accepted - reported.settling - set(numbers_in(database))
        accepted = database.totals.accepted
    if last is None:
        assert not missing
        return False
    if damage is None:
        # Losses after the last record on the disk cannot be noticed.
        assert last.accepted <= accepted or not missing
        return False
    assert damage.at_least or not damage.payloads
    assert not damage.foreign
    # The count includes payloads that were stored after the record was written.
    assert damage.payloads <= len(reported.accepting)
    under_way = (reported.accepting - reported.accepted) | (reported.settling - reported.settled)
    held = len(reported.accepted - reported.settled)
    if not under_way and (last.accepted, last.held) == (len(reported.accepted), held):
        assert damage.payloads == len(missing)
    return True
