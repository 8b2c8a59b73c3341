"""Idempotency-Keys take a bounded part of the journal."""

from __future__ import annotations

import shutil
import sqlite3
import uuid
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from payloadd.errors import KeyReusedError, RefusedError
from payloadd.journal import key_clock
from payloadd.journal.api import Receipt
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.offline import Inspection
from payloadd.journal.sqlite.operations import Append, Expire
from payloadd.journal.sqlite.schema import FILE, KEY_BYTES
from tests.support.journal import append, batch, disk_full, id_of, open_rig, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that lets milliseconds pass for the keys."""
    now = [1_700_000_000_000]
    monkeypatch.setattr(key_clock, "uptime", lambda: now[0])

    def tick(milliseconds: int) -> None:
        now[0] += milliseconds

    return tick


def known(database: Database) -> set[bytes]:
    """Return the keys in the file, after a comparison with their count."""
    keys = {row[0] for row in database._connection.execute("SELECT key FROM answers")}
    assert database.totals.keys == len(keys)
    return keys


def test_the_oldest_keys_are_evicted_above_the_bound(
    tmp_path: Path, clock: Callable[[int], None]
) -> None:
    """One client that makes up a key for each request would fill the disk."""
    with closing(Database(tmp_path / "j")) as database:
        database.most_keys = 10
        for number in range(1, 16):
            database.commit([append(number, b"%02d" % number)])
            clock(1000)
        assert known(database) == {b"%02d" % number for number in range(6, 16)}
        assert database.totals.evicted == 5


def test_the_oldest_keys_of_a_second_are_evicted_first(
    tmp_path: Path, clock: Callable[[int], None]
) -> None:
    """A key would be forgotten by the commit that accepts its request, and a retry stored twice."""
    with closing(Database(tmp_path / "j")) as database:
        database.most_keys = 10
        for number in range(1, 51):
            key = b"%02d" % (99 - number)
            database.commit([append(number, key)])
            again = append(100 + number, key, like=number)
            database.commit([again])
            assert again.earlier is not None, f"forgotten at once: {key!r}"
            clock(1)
        assert known(database) == {b"%02d" % (99 - number) for number in range(41, 51)}


def test_keys_that_expire_in_seconds_are_older_than_others(
    tmp_path: Path, clock: Callable[[int], None]
) -> None:
    """After an upgrade the newest keys would be evicted instead of the oldest."""
    with closing(Database(tmp_path / "j")) as database:
        for number in range(1, 6):
            database.commit([append(number, b"old%d" % number)])
            clock(1000)
        database._connection.execute("UPDATE answers SET expires = expires / 1000, crc = NULL")
        again = append(9, b"old1", like=1)
        database.commit([again])
        assert again.earlier is not None
        database.most_keys = 5
        for number in range(10, 13):
            database.commit([append(number, b"new%d" % number)])
        assert known(database) == {b"old4", b"old5", b"new10", b"new11", b"new12"}
        # A second before "old5" expires, then after it.
        clock((key_clock.KEEP - 2) * 1000)
        database.commit([Expire()])
        assert b"old5" in known(database)
        clock(1000)
        again = append(20, b"old5", like=5)
        database.commit([again, Expire()])
        assert again.earlier is None
        assert b"old4" not in known(database)


def test_a_bound_that_was_lowered_is_reached_in_small_steps(
    tmp_path: Path, clock: Callable[[int], None]
) -> None:
    """The eviction of a million keys would delay all requests for a minute."""
    with closing(Database(tmp_path / "j")) as database:
        database.commit([append(number, b"%d" % number) for number in range(1, 211)])
        clock(1000)
        database.most_keys = 10
        for left in (146, 82, 18, 10, 10):
            database.commit([append(1000 + left, b"new%d" % left)])
            assert len(known(database)) == left


def test_a_key_that_is_used_again_counts_once(tmp_path: Path, clock: Callable[[int], None]) -> None:
    """The count would drift from the file, until no request is accepted any more."""
    with closing(Database(tmp_path / "j")) as database:
        database.commit([append(1, b"a"), append(2, b"a"), append(3, b"b")])
        assert known(database) == {b"a", b"b"}
        for _ in range(key_clock.KEEP):
            clock(1000)
        database.commit([append(4, b"a"), Expire()])
        assert known(database) == {b"a"}


def test_an_empty_collection_leaves_no_key(tmp_path: Path) -> None:
    """A client without a single payload would fill the share, and push out all other keys."""
    with closing(Database(tmp_path / "j")) as database:
        first = append(1, b"used")
        database.commit([first])
        empty = [Append(Receipt(id_of(n), 0), [], b"%d" % n) for n in range(2, 50)]
        again = Append(Receipt(id_of(99), 0), [], b"used")
        database.commit([*empty, again])
        assert known(database) == {b"used"}
        assert isinstance(again.earlier, KeyReusedError)


def test_a_key_of_version_3_matches_every_request(tmp_path: Path) -> None:
    """After an upgrade the retry of a request that is here would be refused."""
    with closing(Database(tmp_path / "j")) as database:
        first = append(1, b"k")
        database.commit([first])
        database._connection.execute("UPDATE answers SET fingerprint = NULL, crc = NULL")
        other = append(2, b"k")
        database.commit([other])
        assert other.earlier == first.receipt


@pytest.mark.parametrize("damaged", [bytes(8), "text"])
def test_a_damaged_fingerprint_does_not_refuse_a_retry(
    tmp_path: Path, damaged: bytes | str
) -> None:
    """The client would give up a request that is here, or send it again under another key."""
    with closing(Database(tmp_path / "j")) as database:
        first = append(1, b"k")
        database.commit([first])
        database._connection.execute("UPDATE answers SET fingerprint = ?", (damaged,))
        again = append(2, b"k", like=1)
        database.commit([again])
        assert again.earlier == first.receipt


def test_the_count_is_exact_after_a_kill_and_a_failed_commit(tmp_path: Path) -> None:
    """A wrong count would refuse requests for ever, or let the disk fill."""
    folder = tmp_path / "state"
    folder.mkdir()
    with closing(Database(folder / "j")) as database:
        database.commit([append(number, b"%d" % number) for number in range(1, 8)])

        def failing() -> object:
            yield append(9, b"nine")
            raise disk_full()

        with pytest.raises(Exception, match="full"):
            database.commit(failing())  # type: ignore[arg-type]
        assert len(known(database)) == 7
        shutil.copytree(folder, tmp_path / "left")
    with closing(Database(tmp_path / "left" / "j")) as database:
        assert len(known(database)) == 7


@pytest.mark.no_cover
def test_key_bytes_is_about_the_size_of_a_key_in_the_file(
    tmp_path: Path, clock: Callable[[int], None]
) -> None:
    """JOURNAL_MAX_BYTES would be passed by as much as this is wrong."""
    with closing(Database(tmp_path / "j")) as database:
        database.most_keys = 10_000
        for number in range(60):
            keys = [b"%016d" % (number * 500 + n) for n in range(500)]
            keys = [uuid.uuid5(id_of(1), str(key)).bytes for key in keys]
            some = [append(number * 500 + n + 1, key) for n, key in enumerate(keys)]
            database.commit(some)
            clock(1000)
        pages = "SELECT sum(pgsize) FROM dbstat WHERE name LIKE 'answers%'"
        (size,) = database._connection.execute(pages).fetchone()
        assert 0.7 * KEY_BYTES <= size / len(known(database)) <= 1.1 * KEY_BYTES


async def test_keys_count_into_journal_max_bytes(tmp_path: Path) -> None:
    """The disk would hold JOURNAL_MAX_BYTES of payloads, and as much again of keys."""
    async with open_rig(tmp_path / "j", max_bytes=100 * KEY_BYTES) as rig:
        for number in range(1, 41):
            await rig.accept(number, b"%d" % number)
        assert rig.database.most_keys == 25
        metrics = rig.metrics.render()
        assert b"payloadd_idempotency_keys 25.0" in metrics
        assert b"payloadd_idempotency_keys_evicted_total 15.0" in metrics
        jobs = [rig.channel.receive_nowait() for _ in range(40)]
        rig.journal.settle(batch(*jobs, sealed=False))
        await until(lambda: rig.database.totals.jobs == 0)
        assert rig.database.totals.all_bytes == 25 * KEY_BYTES
        with pytest.raises(RefusedError) as caught:
            await rig.accept(41, count=80 * KEY_BYTES // 66)
        assert caught.value.code == "JOURNAL_FULL"
        await rig.accept(41, count=70 * KEY_BYTES // 66)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE answers SET payloads = payloads + 1",
        "UPDATE answers SET expires = expires + 256",
        "UPDATE answers SET id = zeroblob(16)",
        "UPDATE answers SET key = zeroblob(16)",
        "UPDATE answers SET fingerprint = zeroblob(16)",
    ],
)
def test_a_flipped_bit_in_a_key_is_found(tmp_path: Path, change: str) -> None:
    """A repeated request would get the id of another one, or be stored twice, in silence."""
    path = tmp_path / FILE
    with closing(Database(path)) as database:
        database.commit([append(1, b"k" * 16)])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(change)
    with Inspection.open(tmp_path) as inspection:
        assert [finding.table for finding in inspection.verify()] == ["answers"]
