"""Fixtures for tests of disks that fail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from payloadd.journal.sqlite.files_in_use import FilesInUse
from payloadd.journal.sqlite.read_errors import ReadErrors
from tests.support.bad_sectors import bad_sectors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.bad_sectors import BadSectors

_EXAMPLES: Final = {"short": 10, "usual": 30, "long": 1000}
"""By the option ``--fuzz``."""


@pytest.fixture
def examples(request: pytest.FixtureRequest) -> int:
    """Return how many examples a state machine tries."""
    return _EXAMPLES[request.config.getoption("--fuzz")]


@pytest.fixture
def quick_read_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a read that fails count as damage after 0.2 s instead of ten."""
    monkeypatch.setattr(ReadErrors, "seconds", 0.2)
    monkeypatch.setattr(ReadErrors, "pause", 0.02)


@pytest.fixture
def bad() -> Iterator[BadSectors]:
    """Return the sectors that cannot be read in this test."""
    with bad_sectors() as one:
        yield one


@pytest.fixture
def grace(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that sets the time in which files may be moved back."""
    return lambda seconds: monkeypatch.setattr(FilesInUse, "grace", seconds)
