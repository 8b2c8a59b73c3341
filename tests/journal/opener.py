"""Open a journal as the runs of a daemon do, for the suite of all journals.

A new journal is one more entry of ``JOURNALS``, and of ``DURABLE`` if it is durable.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import pytest
import trio

from payloadd.config.settings import load
from payloadd.errors import RefusedError
from payloadd.journal.api import Receipt
from payloadd.journal.key_clock import uptime
from payloadd.journal.open import OpenedJournal, inspect_journal, open_journal
from payloadd.model.streams import DEFAULT, DEFAULT_NAME
from payloadd.observe.health import Health
from payloadd.observe.metrics import Metrics
from tests.support.databases import killed_copy
from tests.support.journal import TEST_TIMEOUT, append
from tests.support.listener import RecordingListener

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from payloadd.config.settings import Settings
    from payloadd.errors import KeyReusedError
    from payloadd.journal.api import Journal
    from payloadd.journal.inspection import JournalInspection
    from payloadd.model.job import Part
    from payloadd.model.layout import Layouts

ON_DISK: Final = [pytest.param({"DURABILITY": "disk"}, id="sqlite")]
SHARED: Final = [pytest.param({"JOURNAL_URL": "new"}, id="postgres")]
"""The fixture ``database_of`` replaces ``new`` by the URL of a new database."""
DURABLE: Final = [*ON_DISK, *SHARED]
JOURNALS: Final = [
    *DURABLE,
    pytest.param({"DURABILITY": "memory"}, id="memory"),
    pytest.param({"DURABILITY": "store"}, id="store"),
]
ALL: Final = (0, 10_000, 10**9)
"""Arguments of ``page`` for the whole backlog of a test."""
_NO_MORE: Final[dict[str, str]] = {}


OpenFunction = Callable[..., AbstractAsyncContextManager[OpenedJournal]]
"""``open_journal``, or a faulty journal in its place."""


@dataclass
class Run:
    """A journal that is open, with the pipeline that it reports to."""

    journal: Journal
    layouts: Layouts
    pipeline: RecordingListener
    streams: Mapping[str, int]
    names: Mapping[int, str]
    outcomes: list[Receipt | RefusedError | KeyReusedError] = field(default_factory=list)

    async def accept(
        self,
        number: int,
        count: int = 1,
        key: bytes | None = None,
        *,
        like: int | None = None,
        stream: int = DEFAULT,
    ) -> Receipt:
        """Append a request of ``count`` jobs from ``number`` on; return its receipt."""
        wanted = append(number, key, count, like=like)
        outcome = await self.outcome_of(wanted.receipt, wanted.parts, key, stream)
        if isinstance(outcome, Receipt):
            return outcome
        raise outcome

    async def outcome_of(
        self,
        receipt: Receipt,
        parts: Sequence[Part],
        key: bytes | None = None,
        stream: int = DEFAULT,
    ) -> Receipt | RefusedError | KeyReusedError:
        """Append a request; return its outcome, a refusal at once included."""
        outcomes: list[Receipt | RefusedError | KeyReusedError] = []
        answered = trio.Event()

        def done(outcome: Receipt | RefusedError | KeyReusedError) -> None:
            self.pipeline.reports.append("answered")
            self.outcomes.append(outcome)
            outcomes.append(outcome)
            answered.set()

        try:
            self.journal.append(receipt, parts, key, done, stream)
        except RefusedError as refusal:
            return refusal
        await answered.wait()
        (outcome,) = outcomes
        return outcome


@dataclass
class Opener:
    """One journal that is opened several times, as by the runs of a daemon."""

    folder: Path
    environ: dict[str, str]
    open: OpenFunction = open_journal
    passed: int = 0
    """Seconds that have passed besides the real ones, for the keys."""
    streams: tuple[str, ...] = ()
    """Streams besides the default one."""
    key_template: str = ""
    """KEY_TEMPLATE with the field ``{stream}``."""

    @asynccontextmanager
    async def run(
        self, max_jobs: int = 100_000, max_bytes: int = 10**8, environ: Mapping[str, str] = _NO_MORE
    ) -> AsyncIterator[Run]:
        """Open the journal for a pipeline with this queue; a test that hangs fails."""
        pipeline = RecordingListener(max_jobs, max_bytes)
        clock = lambda: uptime() + 1000 * self.passed  # noqa: E731 - one expression
        arguments: tuple[Any, ...] = (pipeline, Health(), Metrics(), clock)
        with trio.fail_after(TEST_TIMEOUT):
            names = patch(
                "payloadd.journal.open._stream_names", lambda _: (DEFAULT_NAME, *self.streams)
            )
            with names:
                opened = self.open(self._settings(environ), *arguments)
                async with opened as one:
                    yield Run(one.journal, one.layouts, pipeline, one.streams, one.names)
        assert pipeline.reports[0] == "opened"
        assert pipeline.reports[-1] == "closed"
        assert {pipeline.reports.count(name) for name in ("opened", "closed")} == {1}

    def copy(self) -> Opener:
        """Return the journal as a kill of the daemon at this moment would leave it.

        The leases of a shared journal are over, too.
        """
        if "JOURNAL_URL" in self.environ:
            return replace(self, environ={"JOURNAL_URL": killed_copy(self.environ["JOURNAL_URL"])})
        copied = self.folder.with_name(f"{self.folder.name}-killed")
        shutil.copytree(self.folder, copied)
        return replace(self, folder=copied)

    def inspect(self) -> AbstractContextManager[JournalInspection]:
        """Open the journal as ``payloadd journal`` does."""
        return inspect_journal(self._settings(_NO_MORE))

    def _settings(self, environ: Mapping[str, str]) -> Settings:
        loaded = load({"STATE_DIR": str(self.folder), **self.environ, **environ})
        return replace(loaded, key_template=self.key_template or loaded.key_template)
