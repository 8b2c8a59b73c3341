"""Damage journals at random, start from them, and check which payloads are stored.

One journal with every kind of row is made once. Each try copies it, damages one place, opens the
copy as the daemon does, and stores all jobs in a dictionary. Then every payload has to be stored
once and unaltered, or be reported as damaged, or the start has to be refused.

Two kinds of damage are not tried, because rows of stored jobs cannot be told from others then:

* An older version of a page (a write that the disk has lost) brings deleted rows back. The totals
  count fewer jobs, so the start is refused. In a file that is too large to be checked at the start
  an error line says it at the end of the backlog (``test_misplaced_pages.py``).
* A page of ``jobs`` is copied over another one, its rows are deleted in their place, and a crash
  comes before the backlog is read up to the copy. Then the copy is taken for rows that are only in
  the wrong place, as after a swap of two pages; the rows of the other page are reported as missing.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from payloadd.errors import StartError
from payloadd.journal.api import Receipt
from payloadd.journal.sqlite import dead_letters
from payloadd.journal.sqlite.damage import CODE, is_corrupt
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.disk_probe import is_full
from payloadd.journal.sqlite.operations import Append, Bury, Revive, Seal, Settle
from payloadd.journal.sqlite.schema import FILE, open_existing
from payloadd.journal.sqlite.segments import FOLDER
from payloadd.journal.sqlite.verify import verify
from payloadd.model.job import Batch, IdSource, Job, Part
from payloadd.model.layout import Layout, Layouts
from tests.journal.sqlite.damaging import repair_without_pause
from tests.support.journal import unpack

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from payloadd.journal.sqlite.operations import Operation

LAYOUT: Final = Layout("dt={date}/{id}.ndjson", "", "none", alone=False)
_KINDS: Final = ("flip", "flip", "flip", "zero", "cut")
_MEMBERS: Final = 12
_PAGE: Final = 4096
_TRIES: Final = 10
"""Attempts of a commit, more than errors of a full disk that count as lasting."""
_REFUSALS: Final = ("journal verify", "file is not a database")
_LISTED: Final = """
    SELECT coalesce(sum(max(payloads, coalesce(jobs, 0))), 0) FROM dead WHERE code = 'DAMAGED'
"""
HIGH_WATER: Final = "journal.high"


@dataclass
class Base:
    """The journal that all tries copy, and its contents."""

    folder: Path
    payloads: set[bytes] = field(default_factory=set)
    """All payloads that have to be in the store at the end."""
    stored: dict[str, list[bytes]] = field(default_factory=dict)
    """Objects that are stored already, of sealed and of settled batches, by key."""


@dataclass
class Result:
    """The result of one try."""

    damage: str
    """Description of the damage."""
    refused: str | None = None
    objects: dict[str, list[bytes]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    damaged: int = 0
    """Dead letters with the code DAMAGED."""
    listed: int = 0
    """Payloads that these dead letters count; a job with unknown payloads counts as one."""
    kept: set[bytes] = field(default_factory=set)
    """Payloads of the dead letters that the store refused and that were not retried."""
    verified: list[str] = field(default_factory=list)

    def problem(self, base: Base) -> str | None:  # noqa: PLR0911 - one for each kind
        """Return a description of the first broken rule, None if there is none."""
        if self.refused is not None:
            known = any(part in self.refused for part in _REFUSALS)
            return None if known else f"refused with {self.refused}"
        there = Counter(line for lines in self.objects.values() for line in lines)
        altered = [line for line in there if line not in base.payloads]
        twice = [line for line, times in there.items() if times > 1]
        missing = base.payloads - set(there) - self.kept
        if altered:
            return f"{len(altered)} altered, such as {altered[0][:60]!r}"
        if twice:
            return f"{len(twice)} twice, such as {twice[0][:60]!r}"
        if missing and not (self.damaged and self.findings):
            return f"{len(missing)} missing silently, such as {min(missing)[:60]!r}"
        if len(missing) > self.listed:
            return f"{len(missing)} missing, and {self.listed} are listed as DAMAGED"
        if missing and not self.verified:
            return f"{len(missing)} missing, and verify finds nothing"
        return None


class _Maker:
    """Fills the journal that all tries copy."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.base = Base(folder)
        self._rng = rng
        self._ids = IdSource()
        self._number = 0
        self.database = Database(folder / FILE)
        self.layouts = Layouts(self.database.layouts(LAYOUT))

    def accept(self, count: int, size: int, key: bytes | None = None) -> list[Job]:
        """Commit one request of ``count`` jobs of up to ``size`` bytes; return the jobs."""
        parts = []
        for id_ in self._ids.new_ids(count):
            self._number += 1
            text = "".join(self._rng.choices("abcdefgh", k=self._rng.randrange(size // 2, size)))
            line = f'{{"n":{self._number},"p":"{text}"}}'.encode()
            self.base.payloads.add(line)
            parts.append(Part(id_, line + b"\n", 1))
        request = Append(Receipt(parts[0].id, count), parts, key)
        self.database.commit([request])
        return list(request.jobs)

    def batch(self, jobs: Sequence[Job], *, put: bool = False) -> Batch:
        """Seal a batch and return it; ``put``: its object is stored but not settled."""
        batch = self.layouts.batch(jobs)
        self.database.commit([Seal(batch)])
        if put:
            self.base.stored[batch.key] = _lines(batch)
        return batch


def make_base(folder: Path, rng: random.Random) -> Base:
    """Make the journal that all tries copy; SQLite's log is checkpointed."""
    folder.mkdir()
    maker = _Maker(folder, rng)
    database = maker.database
    for _ in range(2):
        database.commit([Bury(maker.batch(maker.accept(4, 300)), "InvalidArgument", "refused")])
    maker.batch(maker.accept(_MEMBERS, 300, b"sealed-and-put--"), put=True)
    maker.batch(maker.accept(_MEMBERS, 300))
    with_segment = maker.accept(80, 8000)
    for start in range(0, 24, 12):
        maker.batch(with_segment[start : start + 12], put=not start)
    maker.accept(10, 60)
    settled = maker.batch(maker.accept(200, 100), put=True)
    unpack(database)
    in_blocks: list[Job] = []
    for number in range(60):
        in_blocks += maker.accept(5, 250, b"%016d" % number)
    maker.accept(70, 9000)
    in_blocks += maker.accept(30, 5000)
    # The first one ends within a block.
    batches = [
        maker.batch(in_blocks[start : start + _MEMBERS], put=start < 2 * _MEMBERS)
        for start in range(0, 3 * _MEMBERS, _MEMBERS)
    ]
    database.commit([Settle(settled)])
    database.commit([Settle(batches[0])])
    for end in ("", "-wal"):
        shutil.copy(folder / f"{FILE}{end}", folder / f"copy{end}")
    record = (folder / HIGH_WATER).read_bytes()
    database.close()
    (folder / HIGH_WATER).write_bytes(record)
    with closing(sqlite3.connect(folder / "copy")) as copy:
        copy.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert copy.execute("SELECT count(*) FROM stored").fetchone() == (4,)
        assert copy.execute("SELECT count(*) FROM blocks").fetchone() > (50,)
    (folder / "copy").replace(folder / FILE)
    for path in folder.iterdir():
        if path.name not in {FILE, FOLDER, HIGH_WATER}:
            path.unlink()
    return maker.base


def damage(folder: Path, rng: random.Random) -> str:
    """Damage one place of one file; return a description of the damage."""
    files = [folder / FILE, folder / FILE, *sorted((folder / FOLDER).iterdir())]
    path = rng.choice(files)
    size = path.stat().st_size
    offset = rng.randrange(size)
    kind = rng.choice(_KINDS)
    with path.open("r+b") as file:
        if kind == "cut":
            file.truncate(offset)
        elif kind == "zero":
            offset -= offset % 4096
            file.seek(offset)
            file.write(bytes(min(4096, size - offset)))
        else:
            file.seek(offset)
            (byte,) = file.read(1)
            bit = 1 << rng.randrange(8)
            file.seek(offset)
            file.write(bytes([byte ^ bit]))
    return f"{kind} {path.name} at {offset} of {size}"


def damage_pages(folder: Path, rng: random.Random) -> str:
    """Swap or copy pages of SQLite's file, or damage one page; return a description."""
    path = folder / FILE
    pages = path.stat().st_size // _PAGE
    kind = rng.choice(("swap", "swap", "copy", "copy", "zero", "flip"))
    one, other = rng.sample(range(pages), 2)
    with path.open("r+b") as file:
        contents = []
        for number in (one, other):
            file.seek(number * _PAGE)
            contents.append(bytearray(file.read(_PAGE)))
        if kind == "zero":
            contents[0] = bytearray(_PAGE)
        elif kind == "flip":
            contents[0][rng.randrange(_PAGE)] ^= 1 << rng.randrange(8)
        elif kind == "copy":
            contents[0] = contents[1]
        else:
            contents.reverse()
        for number, content in zip((one, other), contents, strict=True):
            file.seek(number * _PAGE)
            file.write(content)
    return f"{kind} of pages {one + 1} and {other + 1} of {pages}"


def run(
    base: Base,
    folder: Path,
    rng: random.Random,
    how: Callable[[Path, random.Random], str] | None = damage,
) -> Result:
    """Copy the journal to ``folder``, damage the copy with ``how``, and store all its jobs."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base.folder, folder)
    result = Result("no damage" if how is None else how(folder, rng), objects=dict(base.stored))
    try:
        # The second start finds rows that damage hid from the first start.
        for _ in range(2):
            _start(folder, result)
    except StartError as error:
        result.refused = str(error)
        verify_journal(folder)
        return result
    except sqlite3.DatabaseError as error:
        # The first page was replaced. ``open_journal`` turns this error into a StartError.
        if not is_corrupt(error):
            raise
        result.refused = str(error)
        return result
    result.verified = verify_journal(folder)
    with closing(open_existing(folder / FILE)) as connection:
        letters = dead_letters.letters(connection)
        result.damaged = sum(letter.code == CODE for letter in letters)
        result.listed = connection.execute(_LISTED).fetchone()[0]
        for letter in letters:
            lines = dead_letters.lines(connection, folder, letter.id)
            if letter.code != CODE:
                result.kept.update(lines.splitlines())
    return result


def _start(folder: Path, result: Result) -> None:
    database = _open(folder)
    try:
        _store_all(database, Layouts(database.layouts(LAYOUT)), result)
    finally:
        database.close()
        result.findings += [str(one) for one in database.findings.pop_all()]


def _open(folder: Path) -> Database:
    """Open a journal without syncs, which a try does not need."""
    database = Database(folder / FILE)
    database._connection.execute("PRAGMA synchronous = OFF")
    database._file_repair._full.seconds = 0.0
    return database


def verify_journal(folder: Path) -> list[str]:
    """Return the findings of ``payloadd journal verify`` as text."""
    with closing(open_existing(folder / FILE)) as connection:
        return [str(one) for one in verify(connection, folder)]


def _store_all(database: Database, layouts: Layouts, result: Result) -> None:
    """Store all jobs of the journal, in the order of the daemon."""
    # Where the dead letters are damaged, the command fails with an error message.
    with (
        suppress(sqlite3.DatabaseError),
        closing(open_existing(database._path)) as other,
        other,
    ):
        dead_letters.mark(other, [])
    held: dict[int, Job] = {}
    database.jobs_in_memory = lambda: list(held.values())
    revive = Revive()
    _commit(database, revive)
    for first in [*database.sealed_after({}), *revive.firsts]:
        batch = database.sealed(first)
        if batch is not None:
            held |= {one.seq: one for one in batch.jobs}
            _store(database, batch, result)
            held.clear()
    after = 0
    while jobs := database.page(after, 50, 200_000):
        after = jobs[-1].seq
        held |= {one.seq: one for one in jobs}
        for members in _neighbours(jobs):
            batch = layouts.batch(members)
            _commit(database, Seal(batch))
            _store(database, batch, result)
            for one in members:
                del held[one.seq]
    _commit(database)
    database.compaction.recheck_all()
    for _ in range(2):
        database.compaction.begin()
        while database.compaction.step():
            pass


def _store(database: Database, batch: Batch, result: Result) -> None:
    result.objects[batch.key] = _lines(batch)
    _commit(database, Settle(batch))


def _commit(database: Database, *operations: Operation) -> None:
    """Commit, and as the daemon does, again where SQLite reports a full disk.

    The page number in a damaged page may be larger than any file, and the file is only repaired if
    the error lasts.
    """
    for _ in range(_TRIES):
        try:
            database.commit(operations)
        except sqlite3.Error as error:
            if not is_full(error):
                raise
            repair_without_pause(database)
        else:
            return
    database.commit(operations)


def _neighbours(jobs: Sequence[Job]) -> list[list[Job]]:
    groups: list[list[Job]] = []
    for job in jobs:
        if groups and groups[-1][-1].seq == job.seq - 1 and len(groups[-1]) < _MEMBERS:
            groups[-1].append(job)
        else:
            groups.append([job])
    return groups


def _lines(batch: Batch) -> list[bytes]:
    return [line for job in batch.jobs for line in job.lines.splitlines()]
