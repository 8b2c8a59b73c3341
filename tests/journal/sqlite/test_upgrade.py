"""This version reads journals of format version 3, made by payloadd 0.1.0."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Final
from uuid import UUID

import pytest

from payloadd.journal.api import Receipt
from payloadd.journal.sqlite import schema
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.offline import Inspection
from payloadd.journal.sqlite.operations import Append, Revive, Seal, Settle
from payloadd.journal.sqlite.schema import FILE, MIGRATIONS
from payloadd.model.job import accepted_at
from payloadd.model.layout import Layout, Layouts
from tests.fixtures.version_3.journals import MANIFEST, lines, unpack
from tests.support.journal import id_of

if TYPE_CHECKING:
    from pathlib import Path

_LAYOUT: Final = Layout("dt={date}/hour={hour}/{id}.ndjson", "", "none", alone=False)


def uuid_of(value: str | bytes) -> UUID:
    """Return the id of a text or of 16 bytes."""
    return UUID(value) if isinstance(value, str) else UUID(bytes=value)


@pytest.mark.parametrize("name", MANIFEST)
def test_all_jobs_of_version_3_are_read(name: str, tmp_path: Path) -> None:
    """An update would lose payloads that the old version accepted, or store them twice."""
    manifest = MANIFEST[name]
    found: Counter[bytes] = Counter()
    with closing(Database(unpack(name, tmp_path))) as database:
        assert database.open_streams(("default", "clicks")) == {0: "default", 1: "clicks"}
        assert [*database.newest()] == [0]
        layouts = Layouts(database.layouts(_LAYOUT, {1: _LAYOUT}))
        for first in database.sealed_after({}):
            batch = database.sealed(first)
            assert batch is not None
            found.update(line for job in batch.jobs for line in job.lines.splitlines())
            database.commit([Settle(batch)])
        after = 0
        while jobs := database.page(after, 100, 10**6):
            after = jobs[-1].seq
            found.update(line for job in jobs for line in job.lines.splitlines())
            batch = layouts.batch(jobs)
            database.commit([Seal(batch), Settle(batch)])
        assert database.findings.pop_all() == []
        assert (database.totals.jobs, database.totals.payloads) == (0, 0)
    assert found == lines(manifest["waiting"])


@pytest.mark.parametrize("name", MANIFEST)
def test_keys_of_version_3_are_known(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that is retried after an update would be stored twice."""
    keys = MANIFEST[name]["keys"]
    assert keys
    path = unpack(name, tmp_path)
    with closing(sqlite3.connect(path)) as old:
        hashes = {str(uuid_of(id_)): key for key, id_ in old.execute("SELECT key, id FROM answers")}
    with closing(Database(path)) as database:
        for answer in keys.values():
            now = (int(accepted_at(uuid_of(answer["id"]))) + 3600) * 1000
            monkeypatch.setattr(database.high_water.key_clock, "now", lambda now=now: now)
            request = Append(Receipt(id_of(1), 1), (), hashes[answer["id"]])
            database.commit([request])
            assert request.earlier == Receipt(uuid_of(answer["id"]), answer["accepted"])


@pytest.mark.parametrize("name", MANIFEST)
def test_dead_letters_of_version_3_are_listed_and_retried(name: str, tmp_path: Path) -> None:
    """Dead letters from before an update could not be read or retried after it."""
    path = unpack(name, tmp_path)
    Database(path).close()
    wanted = MANIFEST[name]["dead"]
    with Inspection.open(tmp_path) as inspection:
        letters = inspection.dead()
        shown = [inspection.lines(letter.id) for letter in letters]
        assert [Counter(text.splitlines()) for text in shown] == list(map(lines, wanted))
        assert inspection.status().damaged == 0
        # Rows without checksums are no damage.
        assert inspection.verify() == []
        assert inspection.retry([]) == len(wanted)
    with closing(Database(path)) as database:
        revive = Revive()
        database.commit([revive])
        found = [database.sealed(first) for first in revive.firsts]
    assert [one.payloads for one in found if one is not None] == list(map(len, wanted))


@pytest.mark.parametrize("stopped_after", range(1, 19))
def test_an_interrupted_upgrade_leaves_the_old_version(stopped_after: int, tmp_path: Path) -> None:
    """A daemon that is killed during an upgrade would leave a journal that no version reads."""
    path = unpack("stopped", tmp_path)
    script = MIGRATIONS[3].strip().split(";")
    broken = "; ".join([*script[:stopped_after], "SELECT nonsense"])
    with pytest.raises(sqlite3.OperationalError):
        schema.connect(path, (*MIGRATIONS[:3], broken))
    with closing(sqlite3.connect(path)) as old:
        assert old.execute("PRAGMA user_version").fetchone() == (3,)
        columns = [row[1] for row in old.execute("PRAGMA table_info(jobs)")]
        assert "crc" not in columns
    with closing(Database(path)) as database:
        assert database.totals.payloads == len(MANIFEST["stopped"]["waiting"])


@pytest.mark.parametrize("made_by", ["an earlier build", "a later build"])
def test_a_journal_of_version_4_has_no_lost_rows(tmp_path: Path, made_by: str) -> None:
    """Its rows of batches would be taken for damaged, and no start would be possible."""
    path = tmp_path / FILE
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        schema.migrate(old, MIGRATIONS[:4])
        if made_by == "a later build":
            old.executescript(MIGRATIONS[4])
        row = (id_of(1).bytes, b"1\n")
        old.executemany(
            "INSERT INTO jobs (seq, id, payloads, lines) VALUES (?, ?, 1, ?)",
            ((seq, *row) for seq in (1, 2, 3)),
        )
        columns = "first, last, key, compression"
        old.execute(f"INSERT INTO batches ({columns}) VALUES (1, 2, 'k', 'none')")
        old.execute("UPDATE totals SET next = 4, jobs = 3, payloads = 3, bytes = 3 * 66")
    with closing(Database(path)) as database:
        assert database.sealed_after({}) == [1]
        assert [one.seq for one in database.page(0, 99, 9999)] == [3]
        assert database.findings.pop_all() == []


def test_an_upgrade_does_not_rewrite_the_rows(tmp_path: Path) -> None:
    """An upgrade with a large backlog would take minutes and twice the disk space."""
    path = tmp_path / FILE
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.execute("PRAGMA journal_mode = WAL")
        schema.migrate(old, MIGRATIONS[:3])
        row = (id_of(1).bytes, b"1\n" * 500)
        old.execute("BEGIN")
        old.executemany(
            "INSERT INTO jobs (seq, id, payloads, lines) VALUES (?, ?, 500, ?)",
            ((seq, *row) for seq in range(1, 20_001)),
        )
        old.execute("UPDATE totals SET next = 20001, jobs = 20000, payloads = 10000000")
        old.execute("UPDATE totals SET bytes = 20000 * (1000 + 64)")
        old.execute("COMMIT")
        old.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = time.process_time()
    schema.connect(path).close()
    assert time.process_time() - before < 1
    with closing(schema.connect(path)) as new:
        (pages,) = new.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[1:2]
        assert pages < 100
    with closing(Database(path)) as database:
        assert len(database.page(0, 100, 10**6)) == 100
        assert database.findings.pop_all() == []
