"""Log and count damage of the journal, each finding once."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import trio

from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from payloadd.journal.api import JournalAccounts
    from payloadd.journal.sqlite.database import Database
    from payloadd.observe.metrics import Metrics

log = get_logger(__name__)


class DamageReport:
    """Reports the findings of one database to the log, the accounts and the metrics."""

    def __init__(self, database: Database, accounting: JournalAccounts, metrics: Metrics) -> None:
        self._database = database
        self._accounting = accounting
        self._metrics = metrics
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
        self._accounting.dead += new
        self._metrics.dead.inc(new)
