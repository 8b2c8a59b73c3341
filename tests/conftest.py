"""Options and fixtures of all tests: test lengths, and an S3 server that takes seconds to start."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import structlog
from hypothesis import settings

from tests.support.fuzz import Fuzz
from tests.support.s3 import S3Server, seaweedfs

if TYPE_CHECKING:
    from collections.abc import Iterator

# No deadline: a slow example on a busy machine is not a failure.
settings.register_profile("payloadd", deadline=None)
settings.load_profile("payloadd")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that run more tests, or run tests for longer."""
    group = parser.getgroup("payloadd")
    group.addoption(
        "--all",
        action="store_true",
        help="run the tests that are marked large too: they take minutes, or much memory",
    )
    group.addoption(
        "--repeat-drain",
        type=int,
        default=2,
        metavar="N",
        help="how often SIGTERM is sent to a daemon while it is sent 10,000 payloads (2)",
    )
    group.addoption(
        "--outage",
        type=float,
        default=3.0,
        metavar="SECONDS",
        help="how long the store refuses everything in the tests of outages (3)",
    )
    group.addoption(
        "--torture",
        choices=("short", "long"),
        default="short",
        help="long: kill the daemon about 50 times in each torture test (short: a few times)",
    )
    group.addoption(
        "--fuzz",
        choices=("short", "long"),
        default="short",
        help="long: random cases for 10 minutes a fuzzer (short: for some seconds)",
    )
    group.addoption(
        "--fuzz-seed",
        type=int,
        metavar="N",
        help="begin with the case of this seed, which a failure prints",
    )
    group.addoption(
        "--torture-seed",
        type=int,
        metavar="N",
        help="repeat the random choices of the torture test that printed this seed",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that are marked ``large``, unless --all or ``-m large`` is given."""
    if config.getoption("--all") or "large" in config.getoption("markexpr"):
        return
    large = [item for item in items if item.get_closest_marker("large")]
    if large:
        config.hook.pytest_deselected(items=large)
        items[:] = [item for item in items if not item.get_closest_marker("large")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat a test that has the argument ``repetition`` as often as --repeat-drain says."""
    if "repetition" in metafunc.fixturenames:
        times: int = metafunc.config.getoption("--repeat-drain")
        metafunc.parametrize("repetition", range(times))


@pytest.fixture
def outage(request: pytest.FixtureRequest) -> float:
    """Return how many seconds an outage of the store lasts."""
    seconds: float = request.config.getoption("--outage")
    return seconds


@pytest.fixture
def fuzz(request: pytest.FixtureRequest) -> Iterator[Fuzz]:
    """Return the random cases of a fuzzer; a failed test shows the seed of the last case."""
    made = Fuzz(request.config.getoption("--fuzz"), request.config.getoption("--fuzz-seed"))
    yield made
    made.print_seed()


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Run one SeaweedFS server for the whole session; every test creates its own bucket."""
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def logging_restored() -> Iterator[None]:
    """Restore the logging configuration after the test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
