"""What the tests of the journal share as fixtures."""

from __future__ import annotations

import pytest

from daemon.pipeline import segments


@pytest.fixture
def all_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every job go into a segment, however small it is."""
    monkeypatch.setattr(segments, "LARGE", 1)
    monkeypatch.setattr(segments, "WORTH_A_SYNC", 1)


@pytest.fixture(params=["rows", "segments"])
def anywhere(request: pytest.FixtureRequest) -> None:
    """Run a test once with its payloads in rows, once with all of them in segments."""
    if request.param == "segments":
        request.getfixturevalue("all_large")
