"""What is damaged in the journal becomes a dead letter or is repaired, and is told once."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest
import structlog

from daemon.config import load
from daemon.errors import PayloaddError, StartError
from daemon.health import Health
from daemon.metrics import Metrics
from daemon.pipeline import damage, segment_files, small_tables, structure
from daemon.pipeline.channel import JobChannel
from daemon.pipeline.checksum import of_values
from daemon.pipeline.damage import CODE
from daemon.pipeline.database import Database
from daemon.pipeline.inspection import Inspection
from daemon.pipeline.layout import Layout
from daemon.pipeline.ledger import Ledger
from daemon.pipeline.lock import lock, owner
from daemon.pipeline.opening import open_journal
from daemon.pipeline.operations import Bury, Revive, Seal, Settle
from daemon.pipeline.reserve import Reserve
from daemon.pipeline.salvage import DAMAGED_FILE
from daemon.pipeline.schema import FILE
from daemon.pipeline.segment_files import FOLDER
from tests.pipeline.rig import (
    a_round,
    append,
    batch,
    contents,
    id_of,
    job,
    open_desk,
    sealed,
    until,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from daemon.pipeline.damage import Finding
    from daemon.pipeline.journal import Journal

_LAYOUT: Final = Layout("{id}.ndjson", "", "none", alone=True)
_OTHER: Final = Layout("other/{id}.ndjson", "", "none", alone=True)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the file of a journal with jobs 1 to 9; 2 to 4 are sealed."""
    path = tmp_path / FILE
    with closing(Database(path)) as database:
        database.layouts(_LAYOUT)
        database.commit([append(1, count=9), Seal(batch(job(2), job(3), job(4)))])
    return path


def change(path: Path, *statements: str) -> None:
    """Do to a journal what a flipped bit might do."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def told(database: Database) -> list[Finding]:
    """Return what the database found since the last time."""
    return database.findings.take()


def verified(path: Path) -> list[Finding]:
    """Return what `payloadd journal verify` finds."""
    with Inspection.open(path.parent) as inspection:
        return inspection.verify()


_CHANGES: Final = {
    "lines": "UPDATE jobs SET lines = x'370b' WHERE seq = 7",
    "lines of another kind": "UPDATE jobs SET lines = 7 WHERE seq = 7",
    "id": "UPDATE jobs SET id = x'00' || substr(id, 2) WHERE seq = 7",
    "short id": "UPDATE jobs SET id = x'00' WHERE seq = 7",
    "payloads": "UPDATE jobs SET payloads = 2 WHERE seq = 7",
    "payloads of another kind": "UPDATE jobs SET payloads = 'x' WHERE seq = 7",
    "a place that is none": "UPDATE jobs SET segment = 1 WHERE seq = 7",
    "a segment that is missing": "UPDATE jobs SET segment = 1, start = 0, size = 2 WHERE seq = 7",
    "stream": "UPDATE jobs SET stream = 1 WHERE seq = 7",
    "checksum": "UPDATE jobs SET crc = crc + 1 WHERE seq = 7",
}


@pytest.mark.parametrize("what", _CHANGES)
def test_an_altered_row_becomes_a_dead_letter(path: Path, what: str) -> None:
    """A flipped bit would be uploaded as if it were data."""
    change(path, _CHANGES[what])
    assert {one.table for one in verified(path)} & {"jobs", "totals"}
    with closing(Database(path)) as database:
        assert [one.seq for one in database.page(0, 99, 9999)] == [1, 5, 6, 8, 9]
        assert database.totals.jobs == 8
        (finding,) = told(database)
        assert (finding.table, finding.first, finding.last, finding.jobs) == ("jobs", 7, 7, 1)
        # Once, and not with every look.
        assert [one.seq for one in database.page(6, 99, 9999)] == [8, 9]
        assert told(database) == []
    with Inspection.open(path.parent) as inspection:
        (letter,) = inspection.dead()
        assert (letter.code, letter.id) == (CODE, finding.id)
        assert "number 7" in letter.reason
        assert inspection.status().damaged == 1
        inspection.lines(letter.id)
        assert inspection.retry([]) == 0
        with pytest.raises(PayloaddError, match="cannot be tried again"):
            inspection.retry([letter.id])
        (known,) = inspection.verify()
        assert (known.table, known.first, known.id) == ("dead", 7, letter.id)
        assert inspection.drop([letter.id]) == 1
        assert inspection.verify() == []


def test_neighbours_are_one_dead_letter_that_shows_what_is_left(path: Path) -> None:
    """An operator would have to look at a thousand dead letters of one page."""
    change(path, "UPDATE jobs SET lines = lines || x'0a' WHERE seq IN (6, 7, 8)")
    with closing(Database(path)) as database:
        assert [one.seq for one in database.page(0, 99, 9999)] == [1, 5, 9]
        (finding,) = told(database)
    assert (finding.first, finding.last, finding.payloads) == (6, 8, 3)
    with Inspection.open(path.parent) as inspection:
        (letter,) = inspection.dead()
        assert inspection.lines(letter.id) == b"6\n\n7\n\n8\n\n"
        assert str(id_of(6)) == letter.id
        assert str(id_of(8)) in letter.reason


@pytest.mark.parametrize(
    ("seqs", "left"), [("2", [3, 4]), ("3", [2, 4]), ("4", [2, 3]), ("2, 4", [3]), ("2, 3, 4", [])]
)
def test_what_is_left_of_a_sealed_batch_keeps_its_key(
    path: Path, seqs: str, left: list[int]
) -> None:
    """Its object may be in the store already: under another key all of it would be there twice."""
    change(path, "UPDATE jobs SET payloads = 5 WHERE seq IN (%s)" % seqs)  # noqa: S608, UP031 - ours
    for _ in range(2):  # a crash between, and once more
        with closing(Database(path)) as database:
            found = [database.sealed(first) for first in database.sealed_firsts]
            if left:
                (one,) = found
                assert one is not None
                assert ([each.seq for each in one.jobs], one.key) == (left, "k2")
            else:
                assert found in ([None], [])
    with closing(Database(path)) as database:
        for first in database.sealed_firsts:
            database.commit([Settle(sealed(database, first))])
        assert [one.seq for one in database.page(0, 99, 9999)] == [1, 5, 6, 7, 8, 9]
        assert (database.totals.jobs, database.totals.payloads) == (6, 6)
    with closing(Database(path)) as again:
        assert again.sealed_firsts == []
    assert {one.table for one in verified(path)} == {"dead"}


def test_a_batch_with_gaps_can_die_and_come_back(path: Path) -> None:
    """The counts would be wrong for as long as the journal lives."""
    change(path, "UPDATE jobs SET payloads = 5 WHERE seq = 3")
    with closing(Database(path)) as database:
        one = sealed(database, 2)
        database.commit([Bury(one, "C", "r")])
        change(path, "UPDATE dead SET retry = 1 WHERE code = 'C'")
        revive = Revive()
        database.commit([revive])
        assert (revive.firsts, revive.payloads, database.totals.jobs) == ([2], 2, 8)
    assert {one.table for one in verified(path)} == {"dead"}


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        ("UPDATE batches SET last = last + 16", "batches"),
        ("UPDATE batches SET key = 'c2'", "batches"),
        ("UPDATE batches SET crc = crc + 1", "batches"),
        ("UPDATE totals SET next = next + 64", "totals"),
        ("UPDATE totals SET payloads = payloads + 32", "totals"),
    ],
)
def test_one_flipped_bit_beside_the_jobs_is_repaired(
    path: Path, statement: str, table: str
) -> None:
    """Batches would be sent under other keys, which doubles what is in the store already."""
    change(path, statement)
    assert table in {one.table for one in verified(path)}
    with closing(Database(path)) as database:
        assert [(one.table, one.payloads) for one in told(database)] == [(table, 0)]
        one = sealed(database, 2)
        assert ([each.seq for each in one.jobs], one.key) == ([2, 3, 4], "k2")
        assert (database.totals.next, database.totals.payloads) == (10, 9)
    assert verified(path) == []


def test_a_batch_that_is_lost_is_sent_as_new(path: Path) -> None:
    """Its payloads would never be stored."""
    change(path, "UPDATE batches SET last = 9, key = 'something else'")
    with closing(Database(path)) as database:
        assert [one.table for one in told(database)] == ["batches"]
        assert database.sealed_firsts == []
        assert [one.seq for one in database.page(0, 99, 9999)] == [*range(1, 10)]


def test_a_dead_letter_that_is_lost_is_tried_again(path: Path) -> None:
    """Its payloads would lie in the journal for ever, and nothing would show them."""
    with closing(Database(path)) as database:
        database.commit([Bury(sealed(database, 2), "C", "r")])
    change(path, "UPDATE dead SET last = 9, reason = 'something else'")
    with closing(Database(path)) as database:
        assert [one.table for one in told(database)][:1] == ["dead"]
        assert [one.seq for one in database.page(0, 99, 9999)] == [*range(1, 10)]
        assert database.totals.jobs == 9


def test_damaged_rows_whose_dead_letter_is_lost_get_another(path: Path) -> None:
    """What is left of them would lie in the journal for ever, and nothing would show it."""
    change(path, "UPDATE jobs SET payloads = 5 WHERE seq = 7")
    with closing(Database(path)) as database:
        database.page(0, 99, 9999)
    change(path, "DELETE FROM dead")
    with closing(Database(path)) as database:
        (finding,) = told(database)
        assert "dead letter that is gone" in finding.reason
    assert len(verified(path)) == 1


def test_totals_that_are_lost_are_counted(path: Path) -> None:
    """The daemon would not start, or take a new job for an old one."""
    change(path, "UPDATE totals SET next = 3, jobs = 1, payloads = 77, bytes = 8")
    with closing(Database(path)) as database:
        assert [one.table for one in told(database)] == ["totals"]
        assert (database.totals.next, database.totals.jobs, database.totals.payloads) == (10, 9, 9)
    change(path, "DELETE FROM totals")
    with closing(Database(path)) as database:
        assert database.totals.bytes == 18 + 9 * 64
    assert verified(path) == []


@pytest.mark.parametrize("small", [True, False])
def test_a_row_that_is_gone_is_missed(
    path: Path, monkeypatch: pytest.MonkeyPatch, *, small: bool
) -> None:
    """A payload that was acknowledged would just not be there."""
    if not small:
        monkeypatch.setattr(structure, "MOST_CHECKED", 0)
    change(path, "DELETE FROM jobs WHERE seq = 7")
    assert [one.table for one in verified(path)] == ["totals"]
    with closing(Database(path)) as database:
        assert bool(told(database)) == small
        after = 0
        while page := database.page(after, 4, 9999):
            after = page[-1].seq
        if not small:
            (finding,) = told(database)
            assert (finding.first, finding.jobs, finding.payloads) == (None, 1, 1)
        assert database.totals.jobs == 8
    with Inspection.open(path.parent) as inspection:
        (letter,) = inspection.dead()
        assert inspection.lines(letter.id) == b""
        assert inspection.drop([letter.id]) == 1


def test_a_row_from_the_future_is_no_obstacle(path: Path) -> None:
    """Every commit would fail at the number that the row has taken."""
    move = "UPDATE jobs SET seq = %d WHERE seq = %d"
    change(path, move % (10, 9), move % (2**50, 8))
    with closing(Database(path)) as database:
        assert sorted(one.first or 0 for one in told(database)) == [10, 2**50]
        database.commit([append(10, count=3)])
        assert [one.seq for one in database.page(0, 99, 9999)] == [1, 5, 6, 7, 10, 11, 12]
        assert database.totals.jobs == 10


def test_a_layout_that_is_damaged_is_replaced_by_that_of_now(path: Path) -> None:
    """The daemon would not start, or send objects under keys that no setting asks for."""
    change(path, "UPDATE layouts SET template = 'no field', host = 'x'")
    with closing(Database(path)) as database:
        ((_, layout),) = database.layouts(_OTHER)
        assert layout == _OTHER
        assert [one.table for one in told(database)] == ["layouts"]


def test_a_damaged_page_costs_what_is_on_it(tmp_path: Path) -> None:
    """One page that is gone would keep the whole backlog from being stored."""
    path = tmp_path / FILE
    with closing(Database(path)) as database:
        for number in range(1, 2001, 100):
            database.commit([append(number, count=100)])
    with path.open("r+b") as file:
        file.seek(4096 * 24)
        file.write(bytes(4096))
    assert verified(path)
    with closing(Database(path)) as database:
        jobs = database.page(0, 9999, 10**7)
        missing = {*range(1, 2001)} - {one.seq for one in jobs}
        assert 0 < len(missing) < 200
        assert contents(jobs) == contents(job(seq) for seq in range(1, 2001) if seq not in missing)
        (finding,) = [one for one in told(database) if one.payloads]
        assert (finding.jobs, finding.first, finding.last) == (
            *(len(missing), min(missing), max(missing)),
        )
        database.commit([append(2001)])
        assert [one.seq for one in database.page(2000, 99, 9999)] == [2001]
    assert (tmp_path / DAMAGED_FILE).exists()
    assert {one.table for one in verified(path)} == {"dead"}
    with Inspection.open(tmp_path) as inspection:
        inspection.drop([letter.id for letter in inspection.dead()])
    assert not (tmp_path / DAMAGED_FILE).exists()


def test_a_page_that_is_damaged_under_a_running_daemon_is_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every request would be refused until an operator starts the daemon again."""
    monkeypatch.setattr(structure, "MOST_CHECKED", 0)
    path = tmp_path / FILE
    with closing(Database(path)) as database:
        database.commit([append(1, count=2000)])
    with path.open("r+b") as file:
        file.seek(path.stat().st_size - 3 * 4096)
        file.write(bytes(3 * 4096))
    with closing(Database(path)) as database:
        database.commit([append(2001, count=5)])
        jobs = database.page(0, 9999, 10**7)
        assert [one.seq for one in jobs[-5:]] == [*range(2001, 2006)]
        database.commit([Settle(batch(one)) for one in jobs])
        assert database.totals.jobs == 0
        assert database.damaged_payloads == 2005 - len(jobs) > 0
        assert sum(one.payloads for one in told(database)) == database.damaged_payloads


def test_a_file_that_cannot_be_made_sound_goes_on_as_far_as_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk with no room for a copy would refuse requests for a page that they do not need."""
    monkeypatch.setattr(structure, "MOST_CHECKED", 0)
    path = tmp_path / FILE
    with closing(Database(path)) as database:
        for number in range(1, 2001, 100):
            database.commit([append(number, count=100)])
    with path.open("r+b") as file:
        file.seek(4096 * 24)
        file.write(bytes(4096))

    def full(_: Path) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with closing(Database(path)) as database:
        with monkeypatch.context() as patch:
            patch.setattr("daemon.pipeline.database.make_sound", full)
            with pytest.raises(sqlite3.DatabaseError, match="malformed"):
                database.page(0, 9999, 10**7)
            assert "disk is full" in told(database)[0].reason
            database.commit([append(2001, count=2)])
            assert [one.seq for one in database.page(1999, 99, 9999)] == [2000, 2001, 2002]
            with pytest.raises(sqlite3.DatabaseError, match="malformed"):
                database.page(0, 9999, 10**7)
            # Not again and again.
            assert told(database) == []
        monkeypatch.setattr("daemon.pipeline.database._BETWEEN_REPAIRS", 0)
        assert len(database.page(0, 9999, 10**7)) > 1800
        assert database.damaged_payloads > 0


@pytest.mark.parametrize("table", ["jobs", "batches"])
def test_a_root_page_that_is_gone_is_a_refusal_in_words(path: Path, table: str) -> None:
    """The daemon would go on without what was in it, or end with a traceback."""
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
        (page,) = connection.execute(query, (table,)).fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(bytes(4096))
    with pytest.raises(StartError, match="payloadd journal verify"):
        Database(path)
    assert not (path.parent / DAMAGED_FILE).exists()
    assert verified(path)


def test_a_file_that_was_cut_short_gives_what_is_left(tmp_path: Path) -> None:
    """SQLite reads nothing at all of such a file."""
    path = tmp_path / FILE
    with closing(Database(path)) as database:
        database.commit([append(1, count=4000)])
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2 + 100)
    with closing(Database(path)) as database:
        jobs = database.page(0, 9999, 10**7)
        assert 500 < len(jobs) < 4000
        assert sum(one.payloads for one in told(database)) == 4000 - len(jobs)


def test_an_index_that_misses_a_row_costs_no_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, all_large: None
) -> None:
    """A file with payloads that wait would be removed."""
    del all_large
    monkeypatch.setattr(structure, "MOST_CHECKED", 0)
    path = tmp_path / FILE
    with closing(Database(path)) as database:
        database.commit([append(1, count=3)])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        select = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
        (root,) = connection.execute(select, ("jobs_segment",)).fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        # An empty leaf of an index: https://www.sqlite.org/fileformat.html, section 1.6.
        file.write(b"\x0a\0\0\0\0\x10\0\0" + bytes(4088))
    with closing(Database(path)) as database:
        assert "index" in told(database)[0].reason
        assert [one.seq for one in database.page(0, 9, 99)] == [1, 2, 3]


async def test_damage_is_logged_once_and_counted(path: Path) -> None:
    """The log would fill with one line, or the `drained` line would call payloads lost."""
    change(path, "UPDATE jobs SET payloads = 5 WHERE seq = 7")
    async with open_desk(path) as desk:
        jobs = await desk.journal.page(0, 99, 9999)
        assert [one.seq for one in jobs] == [1, 5, 6, 8, 9]
        assert not desk.health.troubles


@pytest.mark.parametrize(
    ("name", "open_"),
    [
        ("journal.lock", lock),
        ("journal.lock", owner),
        ("journal.reserve", Reserve),
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


def test_a_flipped_bit_is_found_in_every_column() -> None:
    """A repair that guesses wrong would be worse than none."""
    row = (5, 17, "dt=2026-01-01/x.ndjson", "none", "ndjson-1")
    crc = of_values(row)
    wrong = [
        (4, *row[1:]),
        (row[0], 17 - 128, *row[2:]),
        (*row[:2], "dt=2026-01-01/y.ndjson", *row[3:]),
        (*row[:3], "nonm", row[4]),
    ]
    for one in wrong:
        assert small_tables._before_a_flip(small_tables.BATCHES, one, crc) == row
    assert small_tables._before_a_flip(small_tables.BATCHES, row, crc ^ 64) == row
    assert small_tables._before_a_flip(small_tables.BATCHES, (4, 18, *row[2:]), crc) is None


def test_findings_are_told_once() -> None:
    """The log would say the same twice a second."""
    found = damage.Findings()
    calls: list[int] = []
    found.tell = lambda: calls.append(1)
    found.add()
    assert calls == []
    found.add(damage.Finding("jobs", "x"))
    assert len(found.take()) == len(calls) == 1
    assert found.take() == []


async def test_the_log_and_the_ledger_hear_of_damage_once(path: Path) -> None:
    """The `drained` line would call damaged payloads lost, or the log would say nothing."""
    change(path, "UPDATE jobs SET payloads = 5 WHERE seq = 7")
    metrics = Metrics()
    ledger = Ledger(metrics)
    settings = load({"STATE_DIR": str(path.parent)})
    channel = JobChannel(100, 10**6)
    opening = open_journal(settings, channel, ledger, Health(), metrics)
    with structlog.testing.capture_logs() as lines:
        async with opening as opened:
            await _read_twice(opened.journal, ledger)
    assert (ledger.journaled, ledger.lost) == (8, 0)
    (told,) = [line for line in lines if line["event"] == "payloads_damaged"]
    assert (told["log_level"], told["first"], told["last"]) == ("error", 7, 7)


async def _read_twice(journal: Journal, ledger: Ledger) -> None:
    assert ledger.open == 13  # as the altered row says
    jobs = await journal.page(0, 99, 9999)
    assert [one.seq for one in jobs] == [1, 5, 6, 8, 9]
    await until(lambda: ledger.dead)
    assert ledger.open == 8
    await journal.page(6, 99, 9999)


@pytest.mark.usefixtures("all_large")
def test_a_segment_that_is_short_holds_up_no_sweep(tmp_path: Path) -> None:
    """The space of what is stored would never come back."""
    path = tmp_path / FILE
    with closing(Database(path)) as database:
        database.commit([append(1, count=20)])
        segment = segment_files.path_of(tmp_path / FOLDER, 1)
        content = segment.read_bytes()
    segment.write_bytes(content[:-3])
    with closing(Database(path)) as database:
        jobs = database.page(0, 99, 9999)
        assert [one.seq for one in jobs] == [*range(1, 20)]
        database.commit([Settle(batch(one, sealed=False)) for one in jobs[:-1]])
        database.sweep.look_at_all()
        for _ in range(4):
            a_round(database)
        assert not database.sweep.waits
        assert contents(database.page(18, 9, 99)) == [(19, id_of(19), b"19\n", 1)]
    assert [one.table for one in verified(path)] == ["dead"]


def test_idempotency_keys_that_are_damaged_are_found(path: Path) -> None:
    """A request that is tried again would be stored twice, and nothing would say why."""
    with closing(Database(path)) as database:
        database.commit([append(10, key=b"k" * 16)])
    change(path, "UPDATE answers SET id = 'no id', payloads = 'x'")
    assert [one.table for one in verified(path)] == ["answers"]
    with closing(Database(path)) as database:
        request = append(11, key=b"k" * 16)
        database.commit([request])
        # The key is known, which matters most.
        assert request.earlier == request.receipt
        assert request.jobs == []
