"""The rows of the table ``layouts``: from which job on which settings shape keys and objects.

Functions raise sqlite3.Error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from payloadd.journal.sqlite.checksum import of_values
from payloadd.model.layout import Layout
from payloadd.model.streams import first_seq, last_seq, stream_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

    from payloadd.journal.sqlite.table_scan import RowValues

_FORGET: Final = """
    DELETE FROM layouts WHERE first BETWEEN :low AND
    (SELECT max(first) FROM layouts WHERE first BETWEEN :low AND
    coalesce((SELECT min(seq) FROM jobs WHERE seq BETWEEN :low AND :high), :following)) - 1
"""
_INSERT: Final = """
    INSERT OR REPLACE INTO layouts (first, template, host, compression, alone, crc)
    VALUES (?, ?, ?, ?, ?, ?)
"""


def note(
    connection: sqlite3.Connection,
    rows: Sequence[RowValues],
    following: Mapping[int, int],
    now: Mapping[int, Layout],
) -> list[tuple[int, Layout]]:
    """Note that the layouts ``now`` hold from the next job of each stream on.

    ``rows`` are the sound rows of the table, ``following`` the ``seq`` of the next job by stream.
    Returns all layouts, each with its first ``seq``, in order. Layouts without a job left are
    deleted. Runs in the transaction of the caller.
    """
    known = {
        first: Layout(template, host, compression, alone=bool(alone))
        for first, template, host, compression, alone in rows
    }
    newest = {stream_of(first): layout for first, layout in known.items()}
    for stream, layout in now.items():
        if newest.get(stream) != layout:
            first = following[stream]
            known[first] = layout
            _insert(connection, first, layout)
            low = {"low": first_seq(stream), "high": last_seq(stream), "following": first}
            connection.execute(_FORGET, low)
    return sorted(known.items(), key=lambda pair: pair[0])


def _insert(connection: sqlite3.Connection, first: int, layout: Layout) -> None:
    values = (first, layout.template, layout.host, layout.format_name, int(layout.alone))
    connection.execute(_INSERT, (*values, of_values(values)))
