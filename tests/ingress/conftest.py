"""Fixtures that all tests of the ingress share."""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import structlog
import trustme
from hypercorn.trio.tcp_server import TCPServer

from payloadd.ingress.operations import EVERY_REQUEST, NO_OPERATION, OPERATIONS
from payloadd.ingress.problem import KINDS, Problem
from payloadd.ingress.refusal_log import RefusalLog
from tests.ingress import rig
from tests.ingress.tls_files import Files

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping
    from pathlib import Path


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Expect that clients cause no log line above debug level, except ``request_refused``.

    Lines of httpx, the client of the tests, are ignored.
    """
    caplog.set_level(logging.INFO)
    with structlog.testing.capture_logs() as lines:
        yield
    loud = [line["event"] for line in lines if line["log_level"] != "debug"]
    assert set(loud) <= {"request_refused"}
    assert [line for line in caplog.get_records("call") if line.name != "httpx"] == []


@pytest.fixture(autouse=True)
def refusals(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Refusal]]:
    """Expect that each refusal is one that ``/openapi.json`` describes; a test may clear the list.

    Otherwise a client would get an answer that the description does not have.
    """
    seen: list[Refusal] = []
    note = RefusalLog.note

    def collect(
        log: RefusalLog,
        problem: Problem,
        client: str | None,
        user_agent: str | None = None,
        method: str | None = None,
        path: str | None = None,
    ) -> None:
        seen.append(Refusal(problem, path))
        note(log, problem, client, user_agent, method, path)

    monkeypatch.setattr(RefusalLog, "note", collect)
    yield seen
    assert [refusal for refusal in seen if not refusal.is_described] == []


class Refusal(NamedTuple):
    """A refused request; ``path`` is None if it was not parsed."""

    problem: Problem
    path: str | None

    @property
    def is_described(self) -> bool:
        """Whether the table of operations has this answer."""
        code, headers = self.problem.code, self.problem.headers.keys()
        path = (self.path or "").removesuffix("/")
        # A stream is a part of the path.
        operation = OPERATIONS.get(path) or OPERATIONS.get(path.rpartition("/")[0])
        own = NO_OPERATION if operation is None else operation.codes | NO_OPERATION
        return code in own | EVERY_REQUEST and headers >= set(KINDS[code].headers)


@pytest.fixture
def log_lines(quiet: None) -> Iterator[list[MutableMapping[str, Any]]]:
    """Collect the log lines of a test that expects some."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture(params=[True, False], ids=["fastpath", "hypercorn"])
def each_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test twice: with the fast path in front of Hypercorn, and with Hypercorn alone."""
    monkeypatch.setattr(rig, "HAS_FAST_PATH", request.param)


@pytest.fixture
def by_hypercorn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with Hypercorn alone: it is about this way in."""
    monkeypatch.setattr(rig, "HAS_FAST_PATH", False)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Write a certificate for the server."""
    made = Files(tmp_path, trustme.CA())
    made.write()
    return made


@pytest.fixture
def frozen_heap() -> None:
    """Leave the objects of all other tests of the process out of garbage collections.

    One collection of them takes as long as a pass of the event loop may take.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[TCPServer]:
    """Collect the connections that Hypercorn serves."""
    seen: list[TCPServer] = []
    run = TCPServer.run

    async def noted(self: TCPServer) -> None:
        seen.append(self)
        await run(self)

    monkeypatch.setattr(TCPServer, "run", noted)
    return seen
