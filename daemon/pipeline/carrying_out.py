"""Carries out the operations of one commit, as far as their rows do not go with others.

Functions raise sqlite3.Error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from daemon.pipeline import answers, dead_letters
from daemon.pipeline.changes import Changes
from daemon.pipeline.operations import Append, Bury, Expire, Revive, Seal, Settle

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from daemon.pipeline.operations import Operation


def carry_out(
    connection: sqlite3.Connection, operations: Iterable[Operation], following: int
) -> Changes:
    """Carry out operations in order, the next job as number ``following``.

    Returns what is still to be written.
    """
    changes = Changes(following)
    for operation in operations:
        match operation:
            case Append():
                _append(connection, operation, changes)
            case Settle():
                changes.settle(operation.batch)
            case Seal(batch):
                dead_letters.seal(connection, dead_letters.batch_row(batch))
            case Bury(batch, code, reason):
                changes.bury(batch)
                dead_letters.bury(connection, batch, code, reason)
            case Revive():
                _revive(connection, operation, changes)
            case Expire():
                operation.more = answers.expire(connection, changes)
    return changes


def _append(connection: sqlite3.Connection, append: Append, changes: Changes) -> None:
    append.jobs = []
    append.earlier = None
    if append.key is not None:
        append.earlier = answers.answer(connection, append.key, append.receipt, changes)
    if append.earlier is None:
        append.jobs = changes.take_in(append.parts)


def _revive(connection: sqlite3.Connection, revive: Revive, changes: Changes) -> None:
    revived = dead_letters.revive(connection)
    for one in revived:
        changes.revive(one)
    revive.firsts = [one.first for one in revived]
    revive.payloads = sum(one.payloads for one in revived)
    revive.more = len(revived) == dead_letters.AT_ONCE
