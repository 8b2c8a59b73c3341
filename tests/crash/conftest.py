"""Fixtures of the crash tests: the length of the torture, and the seed of random choices."""

from __future__ import annotations

import secrets

import pytest


@pytest.fixture
def long_torture(request: pytest.FixtureRequest) -> bool:
    """Return whether --torture=long was given."""
    return bool(request.config.getoption("--torture") == "long")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Return the seed of the test's random choices, and print it; a failed test shows it."""
    given: int | None = request.config.getoption("--torture-seed")
    chosen = secrets.randbelow(2**32) if given is None else given
    large = " --all" if request.node.get_closest_marker("large") else ""
    print(f"repeat with: {request.node.nodeid}{large} --torture-seed={chosen}")  # noqa: T201
    return chosen
