"""Log and count damage of the journal, each finding once."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import trio

from payloadd.journal.sqlite.identity import FOREIGN
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from payloadd.journal.api import JournalListener
    from payloadd.journal.sqlite.database import Database
    from payloadd.observe.health import Health

log = get_logger(__name__)


class DamageReport:
    """Reports the findings of one database to the log, the accounts and the metrics."""

    def __init__(self, database: Database, listener: JournalListener) -> None:
        self._database = database
        self._listener = listener
        self._counted = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Report findings as soon as there are any, while the body runs."""
        token = trio.lowlevel.current_trio_token()
        # The journal's thread adds findings. Of two calls with nothing between them, the second
        # has nothing to report, so idempotent.
        self._database.findings.on_new = lambda: token.run_sync_soon(
            self.report_new, idempotent=True
        )
        try:
            self.report_new()
            yield
        finally:
            self._database.findings.on_new = lambda: None
            self.report_new()

    def report_new(self) -> None:
        """Report the findings since the last call."""
        for finding in self._database.findings.pop_all():
            known = {name: value for name, value in asdict(finding).items() if value is not None}
            log.error("payloads_damaged", **known)
        # An altered row may have counted for more payloads than it held. Then the number is lower
        # than before; the counters never go back and wait until it is higher again.
        new = max(0, self._database.damaged_payloads - self._counted)
        self._counted += new
        self._listener.damaged(new)


def report_missing(database: Database, health: Health) -> None:
    """Report accepted payloads that the start has found to be missing: log and ``/readyz``.

    The daemon runs on with the payloads that are there.
    """
    damage = database.high_water.damage
    if database.high_water.unreadable:
        log.error("journal_mark_damaged", note="whether payloads are missing is not known")
    if damage is None:
        return
    cause = FOREIGN if damage.foreign else "journal.db-wal was missing, cut off or damaged"
    log.error(
        "journal_damaged",
        missing=damage.payloads,
        at_least=damage.at_least,
        stored_again=damage.again,
        kept=list(damage.files),
        reason=f"{cause}, at this start or an earlier one",
    )
    if damage.payloads or damage.foreign:
        health.report(
            "journal_data",
            "PAYLOADS_MISSING",
            f"{damage} accepted payloads are not in the journal any more: {cause}; have them sent"
            " again, then stop and start the daemon to end this",
        )
