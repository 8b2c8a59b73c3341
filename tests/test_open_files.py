"""The limit of open files bounds the number of connections."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from payloadd import open_files
from payloadd.config import settings as config
from payloadd.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

OTHERS = open_files.ADMIN_CONNECTIONS + open_files.OTHER_DESCRIPTORS + 64


@pytest.fixture
def log_lines() -> Iterator[list[MutableMapping[str, Any]]]:
    """Collect the lines of the log."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.mark.parametrize("limit", [1000 + OTHERS, 1_048_576, resource.RLIM_INFINITY])
def test_a_high_limit_changes_nothing(
    limit: int, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """The log would warn about a machine without a problem."""
    settings = config.load({"MAX_CONNECTIONS": "1000"})
    assert open_files.limit_connections(settings, limit) is settings
    assert log_lines == []


def test_a_low_limit_means_fewer_connections(log_lines: list[MutableMapping[str, Any]]) -> None:
    """Clients would take the descriptors that the journal and the store need."""
    settings = open_files.limit_connections(config.load({"MAX_CONNECTIONS": "1000"}), 999 + OTHERS)
    assert settings.max_connections == 999
    (line,) = log_lines
    assert line["event"] == "open_files_limited"
    assert (line["limit"], line["max_connections_wanted"], line["max_connections_used"]) == (
        999 + OTHERS,
        1000,
        999,
    )


def test_fewer_than_16_connections_are_a_wrong_setting() -> None:
    """The daemon would start and accept hardly any connection."""
    settings = config.load({"MAX_WORKERS": "64"})
    assert open_files.limit_connections(settings, 16 + OTHERS).max_connections == 16
    with pytest.raises(SettingsError, match=rf"needs a limit of {16 + OTHERS} open files"):
        open_files.limit_connections(settings, 15 + OTHERS)


def test_few_connections_are_allowed_if_they_are_configured() -> None:
    """An operator that configures ten connections would have to raise the limit for sixteen."""
    settings = config.load({"MAX_CONNECTIONS": "10"})
    assert open_files.limit_connections(settings, 10 + OTHERS) is settings


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    """The soft limit of shells, 1024, would bound the connections without need."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[1]), before[1]))
        assert open_files.raise_limit() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
