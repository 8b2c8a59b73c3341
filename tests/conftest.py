"""What all tests share: how hard to try, and the S3 server that takes seconds to start."""

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

# A machine that is busy with something else makes no example wrong.
settings.register_profile("payloadd", deadline=None)
settings.load_profile("payloadd")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that make the long tests longer."""
    group = parser.getgroup("payloadd")
    group.addoption(
        "--repeat-drain",
        type=int,
        default=2,
        metavar="N",
        help="how often 10,000 payloads meet a SIGTERM (2)",
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
        help="long: kill the daemon 50 times in each of the torture tests (short: a few times)",
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
        help="begin with the case that an earlier failure printed",
    )
    group.addoption(
        "--torture-seed",
        type=int,
        metavar="N",
        help="make the random choices of an earlier torture, which prints its seed",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for ``repetition`` as often as --repeat-drain says."""
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
    """Return the random cases of a fuzzer; the last one is printed where the test fails."""
    made = Fuzz(request.config.getoption("--fuzz"), request.config.getoption("--fuzz-seed"))
    yield made
    made.tell()


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Run one SeaweedFS for the whole session; every test makes a bucket of its own."""
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def logging_restored() -> Iterator[None]:
    """Leave the log as it was, whatever a test configures."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
