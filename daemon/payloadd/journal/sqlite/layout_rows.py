"""The rows of the table ``layouts``: from which job on which settings shape keys and objects.

Functions raise sqlite3.Error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from payloadd.journal.sqlite.checksum import of_values
from payloadd.model.layout import Layout

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from payloadd.journal.sqlite.table_scan import RowValues

_FORGET: Final = """
    DELETE FROM layouts WHERE first <
    (SELECT max(first) FROM layouts WHERE first <=
    (SELECT coalesce((SELECT min(seq) FROM jobs), (SELECT next FROM totals))))
"""
_INSERT: Final = """
    INSERT OR REPLACE INTO layouts (first, template, host, compression, alone, crc)
    VALUES (?, ?, ?, ?, ?, ?)
"""


def note(
    connection: sqlite3.Connection, rows: Sequence[RowValues], following: int, now: Layout
) -> list[tuple[int, Layout]]:
    """Note that ``now`` holds from the job ``following`` on.

    ``rows`` are the sound rows of the table. Returns all layouts, each with its first ``seq``.
    Layouts without a job left are deleted.
    """
    known = [
        (first, Layout(template, host, compression, alone=bool(alone)))
        for first, template, host, compression, alone in rows
    ]
    if known and known[-1][1] == now:
        return known
    values = (following, now.template, now.host, now.format_name, int(now.alone))
    connection.execute(_INSERT, (*values, of_values(values)))
    connection.execute(_FORGET)
    return [*(one for one in known if one[0] != following), (following, now)]
