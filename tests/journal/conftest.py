"""Fixtures of the tests of the journal."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from payloadd.journal.sqlite import segments
from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.operations import Seal
from payloadd.journal.sqlite.schema import FILE
from payloadd.model.layout import Layout
from tests.support.journal import append, batch, job

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a journal that does not exist yet."""
    return tmp_path / FILE


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    """Return a new journal."""
    with closing(Database(path)) as one:
        yield one


@pytest.fixture
def nine_jobs(path: Path) -> None:
    """Make a journal with the jobs 1 to 9 at ``path``; 2 to 4 are sealed."""
    with closing(Database(path)) as database:
        database.layouts(Layout("{id}.ndjson", "", "none", alone=True))
        database.commit([append(1, count=9), Seal(batch(job(2), job(3), job(4)))])


@pytest.fixture
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write every job into a segment, even a small one."""
    monkeypatch.setattr(segments, "LARGE", 1)
    monkeypatch.setattr(segments, "WORTH_A_SYNC", 1)


@pytest.fixture(params=["rows", "segments"])
def anywhere(request: pytest.FixtureRequest) -> None:
    """Run a test once with its payloads in rows, once with all of them in segments."""
    if request.param == "segments":
        request.getfixturevalue("all_large")
