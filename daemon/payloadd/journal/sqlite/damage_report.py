"""Says in the log what is damaged in the journal, once for each piece, and counts it."""

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
    """Tells what one database finds."""

    def __init__(self, database: Database, accounting: JournalAccounts, metrics: Metrics) -> None:
        self._database = database
        self._accounting = accounting
        self._metrics = metrics
        self._counted = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Tell at once what is found while the body runs."""
        token = trio.lowlevel.current_trio_token()
        # The journal's thread finds it. Called twice for two pieces: the second finds nothing.
        self._database.findings.tell = lambda: token.run_sync_soon(self.tell, idempotent=True)
        try:
            self.tell()
            yield
        finally:
            self._database.findings.tell = lambda: None
            self.tell()

    def tell(self) -> None:
        """Tell what was found since the last time."""
        for finding in self._database.findings.take():
            known = {name: value for name, value in asdict(finding).items() if value is not None}
            log.error("payloads_damaged", **known)
        # Less than before where an altered row has counted for more than it held: the counters
        # wait for the rest.
        new = max(0, self._database.damaged_payloads - self._counted)
        self._counted += new
        self._accounting.dead += new
        self._metrics.dead.inc(new)
