"""Damage to a journal on the disk, and what a start makes of what is left.

A journal with everything in it is made once. Each try copies it, damages one place, opens it as
the daemon does, and brings all that it gives into a store. Then every payload has to be in the
store once and unaltered, or be missing loudly.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from payloadd.errors import StartError
from payloadd.journal.api import Append, Bury, Receipt, Revive, Seal, Settle
from payloadd.journal.sqlite import dead_letters
from payloadd.journal.sqlite.damage import CODE, is_corrupt
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.schema import FILE, look_into
from payloadd.journal.sqlite.segments import FOLDER
from payloadd.journal.sqlite.verify import verify
from payloadd.model.job import Batch, IdSource, Job, Part
from payloadd.model.layout import Layout, Layouts

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence
    from pathlib import Path

LAYOUT: Final = Layout("dt={date}/{id}.ndjson", "", "none", alone=False)
_KINDS: Final = ("flip", "flip", "flip", "zero", "cut")
_MEMBERS: Final = 12
_PAGE: Final = 4096
_REFUSALS: Final = ("journal verify", "file is not a database")
_LISTED: Final = """
    SELECT coalesce(sum(max(payloads, coalesce(jobs, 0))), 0) FROM dead WHERE code = 'DAMAGED'
"""
MARK: Final = "journal.high"


@dataclass
class Base:
    """The journal that is damaged, and what is in it."""

    folder: Path
    payloads: set[bytes] = field(default_factory=set)
    """All that is to be in the store at the end."""
    stored: dict[str, list[bytes]] = field(default_factory=dict)
    """Objects that are in the store already: of batches that are still sealed, or settled."""


@dataclass
class Result:
    """What one try came to."""

    what: str
    refused: str | None = None
    objects: dict[str, list[bytes]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    damaged: int = 0
    """Dead letters with the code DAMAGED."""
    listed: int = 0
    """How many payloads these say are damaged; a job of which nothing is known has one."""
    kept: set[bytes] = field(default_factory=set)
    """Payloads of dead letters that the store refused and that were not tried again."""
    verified: list[str] = field(default_factory=list)

    def problem(self, base: Base) -> str | None:  # noqa: PLR0911 - one for each kind
        """Return what is wrong with it, None if nothing."""
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
            return f"{len(missing)} missing in silence, such as {min(missing)[:60]!r}"
        if len(missing) > self.listed:
            return f"{len(missing)} missing, and {self.listed} are listed as DAMAGED"
        if missing and not self.verified:
            return f"{len(missing)} missing, and verify finds nothing"
        return None


class _Maker:
    """Fills a journal."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.base = Base(folder)
        self._rng = rng
        self._ids = IdSource()
        self._number = 0
        self.database = Database(folder / FILE)
        self.layouts = Layouts(self.database.layouts(LAYOUT))

    def take(self, count: int, size: int, key: bytes | None = None) -> list[Job]:
        """Commit one request of ``count`` jobs; returns them."""
        parts = []
        for id_ in self._ids.take(count):
            self._number += 1
            text = "".join(self._rng.choices("abcdefgh", k=self._rng.randrange(size // 2, size)))
            line = f'{{"n":{self._number},"p":"{text}"}}'.encode()
            self.base.payloads.add(line)
            parts.append(Part(id_, line + b"\n", 1))
        request = Append(Receipt(parts[0].id, count), parts, key)
        self.database.commit([request])
        return list(request.jobs)

    def batch(self, jobs: Sequence[Job], *, put: bool = False) -> Batch:
        """Seal a batch; ``put``: its object was stored, and the journal does not know yet."""
        batch = self.layouts.batch(jobs)
        self.database.commit([Seal(batch)])
        if put:
            self.base.stored[batch.key] = _lines(batch)
        return batch


def make_base(folder: Path, rng: random.Random) -> Base:
    """Make the journal that all tries begin with; SQLite's log is folded in."""
    folder.mkdir()
    maker = _Maker(folder, rng)
    database = maker.database
    for _ in range(2):
        database.commit([Bury(maker.batch(maker.take(4, 300)), "InvalidArgument", "refused")])
    maker.batch(maker.take(_MEMBERS, 300, b"sealed-and-put--"), put=True)
    maker.batch(maker.take(_MEMBERS, 300))
    with_segment = maker.take(80, 8000)
    for start in range(0, 24, 12):
        maker.batch(with_segment[start : start + 12], put=not start)
    maker.take(10, 60)
    settled = maker.batch(maker.take(200, 100), put=True)
    for number in range(60):
        maker.take(5, 250, b"%016d" % number)
    maker.take(70, 9000)
    maker.take(30, 5000)
    database.commit([Settle(settled)])
    for end in ("", "-wal"):
        shutil.copy(folder / f"{FILE}{end}", folder / f"copy{end}")
    mark = (folder / MARK).read_bytes()
    database.close()
    (folder / MARK).write_bytes(mark)
    with closing(sqlite3.connect(folder / "copy")) as copy:
        copy.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert copy.execute("SELECT count(*) FROM stored").fetchone() == (1,)
    (folder / "copy").replace(folder / FILE)
    for path in folder.iterdir():
        if path.name not in {FILE, FOLDER, MARK}:
            path.unlink()
    return maker.base


def damage(folder: Path, rng: random.Random) -> str:
    """Damage one place of one file; returns which."""
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
    """Exchange two pages of SQLite's file, or damage one; returns which."""
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
    """Copy the journal to ``folder``, damage it there, and bring what it gives into a store."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base.folder, folder)
    result = Result("nothing" if how is None else how(folder, rng), objects=dict(base.stored))
    try:
        # What a damaged file has hidden from the first start is found by the second.
        for _ in range(2):
            _start(folder, result)
    except StartError as error:
        result.refused = str(error)
        look(folder)
        return result
    except sqlite3.DatabaseError as error:
        # The first page is another one. ``open_journal`` makes a StartError of it.
        if not is_corrupt(error):
            raise
        result.refused = str(error)
        return result
    result.verified = look(folder)
    with closing(look_into(folder / FILE)) as connection:
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
        _bring(database, Layouts(database.layouts(LAYOUT)), result)
    finally:
        database.close()
        result.findings += [str(one) for one in database.findings.take()]


def _open(folder: Path) -> Database:
    """Open a journal whose commits are not synced: no try ends in a power cut."""
    database = Database(folder / FILE)
    database._connection.execute("PRAGMA synchronous = OFF")
    return database


def look(folder: Path) -> list[str]:
    """Return what ``payloadd journal verify`` finds."""
    with closing(look_into(folder / FILE)) as connection:
        return [str(one) for one in verify(connection, folder)]


def _bring(database: Database, layouts: Layouts, result: Result) -> None:
    """Store all that the journal gives, in the order in which the daemon does."""
    # An operator reads that the journal cannot be read where the letters are what is damaged.
    with (
        suppress(sqlite3.DatabaseError),
        closing(look_into(database._path)) as other,
        other,
    ):
        dead_letters.mark(other, [])
    held: dict[int, Job] = {}
    database.jobs_in_memory = lambda: list(held.values())
    revive = Revive()
    database.commit([revive])
    for first in [*database.sealed_firsts, *revive.firsts]:
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
            database.commit([Seal(batch)])
            _store(database, batch, result)
            for one in members:
                del held[one.seq]
    database.commit([])
    database.compaction.recheck_all()
    for _ in range(2):
        database.compaction.begin()
        while database.compaction.step():
            pass


def _store(database: Database, batch: Batch, result: Result) -> None:
    result.objects[batch.key] = _lines(batch)
    database.commit([Settle(batch)])


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
