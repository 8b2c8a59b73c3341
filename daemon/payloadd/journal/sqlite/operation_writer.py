"""Execute the operations of one commit and collect the changes to write. Raises sqlite3.Error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from payloadd.journal.sqlite import dead_letters, idempotency
from payloadd.journal.sqlite.operations import (
    Abandon,
    Append,
    Bury,
    Expire,
    Revive,
    Seal,
    Settle,
    Stage,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from payloadd.journal.sqlite.operations import Operation
    from payloadd.journal.sqlite.staging import Staging
    from payloadd.journal.sqlite.transaction import CommitChanges


def carry_out(
    connection: sqlite3.Connection,
    operations: Iterable[Operation],
    changes: CommitChanges,
    staging: Staging,
) -> CommitChanges:
    """Execute operations in order, and add what is still to be written to ``changes``.

    Returns ``changes``. Raises sqlite3.Error.
    """
    for operation in operations:
        match operation:
            case Append():
                changes.requests = True
                staging.accept(operation, changes)
            case Stage():
                changes.requests = True
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
                operation.more = idempotency.expire(connection, changes, staging.key_clock.now())
    return changes


def _revive(connection: sqlite3.Connection, revive: Revive, changes: CommitChanges) -> None:
    revived = dead_letters.revive(connection)
    for letter in revived:
        changes.revive(letter)
    revive.firsts = [letter.first for letter in revived]
    revive.payloads = sum(letter.payloads for letter in revived)
    revive.more = len(revived) == dead_letters.REVIVED_PER_COMMIT
