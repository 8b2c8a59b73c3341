"""The damaged files that were replaced by a repair, kept for an operator.

They are called ``journal.db.damaged-1``, ``-2`` and so on. Each is as large as the journal was, so
a few are kept, the newest; all of them go with the last dead letter of their damage.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from payloadd.journal.sqlite.damage import Finding
from payloadd.journal.sqlite.schema import FILE

if TYPE_CHECKING:
    from pathlib import Path

_PREFIX: Final = f"{FILE}.damaged-"
MOST_KEPT: Final = 3


def keep(path: Path) -> list[Finding]:
    """Give the journal at ``path`` a second name, under which it stays; returns what to tell.

    Raises OSError.
    """
    there = names(path.parent)
    number = _number(there[-1]) + 1 if there else 1
    kept = path.with_name(f"{_PREFIX}{number}")
    os.link(path, kept)
    found = [Finding("file", f"the damaged file is kept as {kept.name}")]
    for old in [*there, kept][:-MOST_KEPT]:
        old.unlink(missing_ok=True)
        found.append(Finding("file", f"{old.name} was removed: {MOST_KEPT} damaged files are kept"))
    return found


def names(folder: Path) -> list[Path]:
    """Return the damaged files in ``folder``, the oldest first. Raises OSError."""
    found = (path for path in folder.iterdir() if path.name.startswith(_PREFIX))
    return sorted((path for path in found if path.name[len(_PREFIX) :].isdecimal()), key=_number)


def remove(folder: Path) -> None:
    """Remove all damaged files. Raises OSError."""
    for path in names(folder):
        path.unlink(missing_ok=True)


def _number(path: Path) -> int:
    return int(path.name[len(_PREFIX) :])
