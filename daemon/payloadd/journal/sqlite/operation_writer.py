"""Carries out the operations of one commit, as far as their rows do not go with others.

Functions raise sqlite3.Error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from payloadd.journal.operations import Abandon, Append, Bury, Expire, Revive, Seal, Settle, Stage
from payloadd.journal.sqlite import dead_letters, idempotency
from payloadd.journal.sqlite.transaction import CommitChanges

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from payloadd.journal.operations import Operation
    from payloadd.journal.sqlite.staging import Staging


def carry_out(
    connection: sqlite3.Connection,
    operations: Iterable[Operation],
    following: int,
    staging: Staging,
) -> CommitChanges:
    """Carry out operations in order, the next job as number ``following``.

    Returns what is still to be written.
    """
    changes = CommitChanges(following)
    for operation in operations:
        match operation:
            case Append():
                staging.take_in(operation, changes)
            case Stage():
                staging.stage(operation, changes)
            case Abandon():
                staging.abandon()
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
                operation.more = idempotency.expire(connection, changes)
    return changes


def _revive(connection: sqlite3.Connection, revive: Revive, changes: CommitChanges) -> None:
    revived = dead_letters.revive(connection)
    for one in revived:
        changes.revive(one)
    revive.firsts = [one.first for one in revived]
    revive.payloads = sum(one.payloads for one in revived)
    revive.more = len(revived) == dead_letters.REVIVED_PER_COMMIT
