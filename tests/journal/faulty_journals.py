"""Journals that break one promise each, to check the suite of all journals."""

from __future__ import annotations

import shutil
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from payloadd.errors import RefusedError
from payloadd.journal.open import OpenedJournal, open_journal
from payloadd.journal.sqlite import schema
from payloadd.journal.sqlite.operations import Seal
from payloadd.model.layout import Layout, Layouts
from payloadd.model.streams import DEFAULT

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from payloadd.config.settings import Settings
    from payloadd.journal.api import Journal, JournalListener, OutcomeCallback, Receipt
    from payloadd.journal.sqlite.damage import Finding
    from payloadd.model.job import Batch, Part
    from payloadd.observe.health import Health
    from payloadd.observe.metrics import Metrics


class _Altered:
    """A journal, or its listener, with other methods in place of some of its own."""

    def __init__(self, real: Any) -> None:  # noqa: ANN401 - of any class
        self._real = real

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - of any method
        return getattr(self._real, name)


class _AnswersAtOnce(_Altered):
    def append(
        self,
        receipt: Receipt,
        parts: Sequence[Part],
        key: bytes | None,
        done: OutcomeCallback,
        stream: int = DEFAULT,
    ) -> None:
        self._real.append(receipt, parts, key, lambda _outcome: None, stream)
        done(receipt)


class _AnswersFailedWrites(_Altered):
    def append(
        self,
        receipt: Receipt,
        parts: Sequence[Part],
        key: bytes | None,
        done: OutcomeCallback,
        stream: int = DEFAULT,
    ) -> None:
        self._real.append(
            *(receipt, parts, key),
            lambda outcome: done(receipt if isinstance(outcome, RefusedError) else outcome),
            stream,
        )


class _StaysInTrouble(_Altered):
    _trouble: RefusedError | None = None

    def refusal(self) -> RefusedError | None:
        self._trouble = self._trouble or self._real.refusal()
        return self._trouble


class _ThrowsDeadLettersAway(_Altered):
    def bury(self, batch: Batch, _code: str, _reason: str) -> None:
        self._real.settle(batch)


class _HasRoom(_Altered):
    async def wait_for_room(self) -> None:
        pass


class _SealsLater(_Altered):
    async def seal(self, batch: Batch) -> None:
        self._real._commit_queue.add(Seal(batch))


class _ForgetsSeals(_Altered):
    async def seal(self, batch: Batch) -> None:
        pass


class _KnowsOneStream(_Altered):
    def append(
        self,
        receipt: Receipt,
        parts: Sequence[Part],
        key: bytes | None,
        done: OutcomeCallback,
        _stream: int = DEFAULT,
    ) -> None:
        self._real.append(receipt, parts, key, done)


class _HidesItsAge(_Altered):
    def oldest_accepted(
        self, since: float | None, by_stream: Mapping[int, tuple[int, int]] | None = None
    ) -> None:
        pass


def _with(name: str, alter: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return a function that opens the altered journal; another process finds it by ``name``."""

    @asynccontextmanager
    async def opened(*arguments: Any) -> AsyncIterator[OpenedJournal]:  # noqa: ANN401 - passed on
        async with open_journal(*arguments) as real:
            altered: Journal = alter(real.journal)
            yield replace(real, journal=altered)

    opened.__name__ = name
    return opened


answers_at_once = _with("answers_at_once", _AnswersAtOnce)
answers_failed_writes = _with("answers_failed_writes", _AnswersFailedWrites)
stays_in_trouble = _with("stays_in_trouble", _StaysInTrouble)
throws_dead_letters_away = _with("throws_dead_letters_away", _ThrowsDeadLettersAway)
has_room = _with("has_room", _HasRoom)
seals_later = _with("seals_later", _SealsLater)
knows_one_stream = _with("knows_one_stream", _KnowsOneStream)
forgets_seals = _with("forgets_seals", _ForgetsSeals)


@asynccontextmanager
async def hides_its_age(
    settings: Settings,
    listener: JournalListener,
    *arguments: Any,  # noqa: ANN401 - passed on
) -> AsyncIterator[OpenedJournal]:
    """Report no age of the backlog."""
    altered: Any = _HidesItsAge(listener)
    async with open_journal(settings, altered, *arguments) as opened:
        yield opened


@asynccontextmanager
async def forgets_layouts(settings: Settings, *arguments: Any) -> AsyncIterator[OpenedJournal]:  # noqa: ANN401 - passed on
    """Give all jobs the layout of the present settings."""
    async with open_journal(settings, *arguments) as opened:
        yield replace(opened, layouts=Layouts([(0, Layout.of(settings))]))


@asynccontextmanager
async def gives_numbers_anew(*arguments: Any) -> AsyncIterator[OpenedJournal]:  # noqa: ANN401 - passed on
    """Give numbers to the streams in the order of the settings at each start."""

    def assign(
        _connection: sqlite3.Connection, _known: Mapping[int, str], wanted: Sequence[str]
    ) -> tuple[dict[int, str], list[Finding]]:
        return dict(enumerate(wanted)), []

    with patch("payloadd.journal.sqlite.stream_rows.assign", assign):
        async with open_journal(*arguments) as opened:
            yield opened


@asynccontextmanager
async def keeps_keys_for_ever(
    settings: Settings,
    listener: JournalListener,
    health: Health,
    metrics: Metrics,
    _read_uptime: Callable[[], int],
) -> AsyncIterator[OpenedJournal]:
    """Let no time pass."""
    async with open_journal(settings, listener, health, metrics, lambda: 10**9) as opened:
        yield opened


@asynccontextmanager
async def writes_at_the_end(settings: Settings, *arguments: Any) -> AsyncIterator[OpenedJournal]:  # noqa: ANN401 - passed on
    """Write nothing into STATE_DIR before the journal is closed."""
    aside = settings.state_dir.with_name("aside")
    if settings.state_dir.exists():
        _replace(settings.state_dir, aside)
    settings.state_dir.mkdir(exist_ok=True)
    async with open_journal(replace(settings, state_dir=aside), *arguments) as opened:
        yield opened
    _replace(aside, settings.state_dir)


def _replace(old: Path, new: Path) -> None:
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(old, new)


@asynccontextmanager
async def does_not_sync(*arguments: Any) -> AsyncIterator[OpenedJournal]:  # noqa: ANN401 - passed on
    """Leave it to the kernel when bytes reach the disk."""
    with _without_syncs(), patch("os.fdatasync"), patch("os.fsync"):
        async with open_journal(*arguments) as opened:
            yield opened


@contextmanager
def _without_syncs() -> Iterator[None]:
    connect = schema.connect

    def without_syncs(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    with patch("payloadd.journal.sqlite.file_check.schema.connect", without_syncs):
        yield
