"""The table ``streams``: the names of streams, and which streams have rows.

The default stream has no row in it. A stream keeps its number for as long as the journal has jobs
of it: the number is part of their ``seq``. Functions raise sqlite3.Error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from payloadd.errors import StartError
from payloadd.journal.sqlite.checksum import of_values
from payloadd.journal.sqlite.damage import Finding
from payloadd.model.streams import (
    DEFAULT,
    DEFAULT_NAME,
    MOST_NUMBERS,
    first_seq,
    last_seq,
    stream_of,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from payloadd.journal.sqlite.job_rows import Range
    from payloadd.journal.sqlite.table_scan import RowValues

_NEXT: Final = "SELECT min(seq) FROM jobs WHERE seq > ?"
_WRITE: Final = "INSERT OR REPLACE INTO streams (number, name, crc) VALUES (?, ?, ?)"


def with_jobs(connection: sqlite3.Connection) -> list[int]:
    """Return the numbers of the streams that have rows in ``jobs``, in order."""
    return list(_with_jobs(connection))


def _with_jobs(connection: sqlite3.Connection) -> Iterator[int]:
    after = 0
    while True:
        # From one stream to the next: the time does not depend on the number of jobs.
        (seq,) = connection.execute(_NEXT, (after,)).fetchone()
        if seq is None or seq <= after:
            return
        yield stream_of(seq)
        after = last_seq(stream_of(seq))


def names_of(rows: Iterable[RowValues]) -> dict[int, str]:
    """Return the names of all streams by number, from sound rows of the table."""
    return {DEFAULT: DEFAULT_NAME, **dict(rows)}


def read(connection: sqlite3.Connection) -> dict[int, str]:
    """Return the names of all streams by number, unchecked."""
    return names_of(connection.execute("SELECT number, name FROM streams"))


def are_several(connection: sqlite3.Connection) -> bool:
    """Return whether there is or was another stream than the default one."""
    return len(read(connection)) > 1 or not {DEFAULT}.issuperset(with_jobs(connection))


def assign(
    connection: sqlite3.Connection, known: Mapping[int, str], wanted: Sequence[str]
) -> tuple[dict[int, str], list[Finding]]:
    """Give a number to each of the ``wanted`` streams that has none, and to streams without a name.

    ``known``: the sound names by number. A number of which there are jobs without a name gets a
    name made of the number, so that the jobs are stored. Returns all names, and a finding for each
    name that is lost. Runs in the caller's transaction. Raises StartError where no number is left.
    """
    names = dict(known)
    in_use = {number for number in with_jobs(connection) if number < MOST_NUMBERS}
    found = []
    for number in sorted(in_use - names.keys()):
        names[number] = _free_name(f"stream-{number}", {*names.values(), *wanted})
        reason = f"the name of stream {number} is lost; its jobs are stored as {names[number]}"
        found.append(Finding("streams", reason, first_seq(number), last_seq(number)))
    for name in wanted:
        if name not in names.values():
            names[_free_number(names, in_use | _buried(connection), wanted)] = name
    new = [(number, name) for number, name in names.items() if known.get(number) != name]
    write(connection, new)
    return names, found


def write(connection: sqlite3.Connection, names: Iterable[tuple[int, str]]) -> None:
    """Write rows of the table, each a number and a name. The default stream gets no row."""
    rows = [(*one, of_values(one)) for one in names if one[0] != DEFAULT]
    connection.executemany(_WRITE, rows)


def _free_name(name: str, taken: set[str]) -> str:
    return name if name not in taken else _free_name(f"{name}-", taken)


def _free_number(names: Mapping[int, str], in_use: set[int], wanted: Sequence[str]) -> int:
    """Return the lowest number that no stream has, else that of a former stream without jobs."""
    for number in range(1, MOST_NUMBERS):
        if number not in names and number not in in_use:
            return number
    for number, name in names.items():
        if number not in in_use and name not in wanted and number != DEFAULT:
            return number
    raise StartError(
        f"STREAMS: the journal has jobs of {len(in_use)} streams, and no number is left for another"
    )


def _buried(connection: sqlite3.Connection) -> set[int]:
    """Return the numbers of the streams of which damaged jobs are dead letters."""
    found = connection.execute("SELECT DISTINCT -first >> 48 FROM dead WHERE first <= 0")
    return {number for (number,) in found}


def ranges(numbers: Iterable[int], following: int) -> list[Range]:
    """Return ranges of ``seq`` that together have every number above 0, in order.

    The range of each stream ends before the count ``following``, so that it does not reach far
    beyond the rows; the numbers between two streams are a range of their own.
    """
    found: list[Range] = []
    after = 0
    for number in sorted({DEFAULT, *numbers}):
        first, last = first_seq(number) + 1, first_seq(number) + following - 1
        if after < first - 1:
            found.append((after + 1, first - 1))
        if first <= last:
            found.append((first, last))
        after = max(first - 1, last)
    return [*found, (after + 1, 2**62)]
