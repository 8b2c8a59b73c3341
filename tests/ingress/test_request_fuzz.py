"""Random requests with tokens and streams: both ways in answer alike, and accept the same."""

from __future__ import annotations

import hashlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest
import trio

from tests.ingress import rig as rigs
from tests.ingress.random_requests import STREAMS, TOKENS, make_case, make_pipelined_case
from tests.support.fuzz import known_cases, pieces_of

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.ingress.conftest import Refusal
    from tests.ingress.rig import Answer, Rig, Wire
    from tests.support.fuzz import Fuzz

_LAST: Final = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
"""The last request of each connection: the server closes after its answer."""
_BY_HEAD: Final = frozenset({200, 204, 401, 403, 404, 405, 415})
"""Statuses of answers for which the body is not read: to GET, OPTIONS, and refusals."""
_IDLE: Final = 1.0
"""Seconds after which a server that has not answered waits for more input, unless the machine is
busy."""
_LONG_IDLE: Final = 20.0
"""The same on a busy machine."""
_COMPARED: Final = (
    *("content-type", "allow", "www-authenticate", "accept-post", "accept-encoding", "connection"),
    *("access-control-allow-origin", "vary"),
)
"""The headers of answers that have to be equal."""


class Accepted(NamedTuple):
    """What the pipeline sees of the requests of one connection."""

    payloads: list[list[bytes]]
    streams: list[int]
    keys: list[str | None]


@dataclass
class Outcome:
    """What a client and the pipeline see of the requests of one connection."""

    answers: list[tuple[object, ...]]
    accepted: Accepted
    waited: bool = field(default=False, compare=False)
    """Whether no answer came in time, and the client ended its input."""


async def outcome_of(rig: Rig, requests: list[list[bytes]], idle: float = _IDLE) -> Outcome:
    """Send requests on a new connection, each in its pieces and after the answer to the last.

    ``idle``: seconds after which a request without an answer is incomplete.
    """
    intake = rig.intake
    intake.taken, intake.streams, intake.keys = [], [], []
    answers: list[Answer] = []
    waited = False
    async with rig.wire() as wire:
        with suppress(trio.BrokenResourceError, EOFError):
            for pieces in [*requests, [_LAST]]:
                for piece in pieces:
                    await wire.send(piece)
                with trio.move_on_after(idle) as waiting:
                    answers.append(await _final(wire))
                if waiting.cancelled_caught:  # the server waits for the rest of the request
                    waited = True
                    await wire.stream.send_eof()
                    break
                if answers[-1].headers.get("connection") == "close":
                    break
            while True:
                answers.append(await _final(wire))
    shown = [_shown(answer) for answer in answers]
    return Outcome(shown, Accepted(intake.taken, intake.streams, intake.keys), waited)


def alike(fast: Outcome, reference: Outcome, *, chunked: bool) -> bool:
    """Return whether the fast path may have this outcome.

    Where the chunks of a body are malformed and the body is not needed for the answer, Hypercorn
    answers 400: it reads the chunks first. In both cases nothing is accepted, and the connection
    ends. ``chunked``: whether a request has chunks.
    """
    *first, last = reference.answers or [()]
    if fast == reference or "MALFORMED" not in str(last):
        return fast == reference
    *others, end = fast.answers or [()]
    unread = "close" in end and end[0] in _BY_HEAD
    return chunked and unread and others == first and fast.accepted == reference.accepted


async def outcomes_of(
    sides: Sequence[Rig], requests: list[list[bytes]], idle: float = _IDLE
) -> list[Outcome]:
    """Send the same requests to several servers at the same time."""
    found: dict[int, Outcome] = {}

    async def send(number: int) -> None:
        found[number] = await outcome_of(sides[number], requests, idle)

    async with trio.open_nursery() as nursery:
        for number in range(len(sides)):
            nursery.start_soon(send, number)
    return [found[number] for number in range(len(sides))]


async def _final(wire: Wire) -> Answer:
    """Return the next answer that is no 100: whether one is sent depends on when the body comes."""
    while (answer := await wire.answer()).status == 100:
        pass
    return answer


def _shown(answer: Answer) -> tuple[object, ...]:
    """Return what has to be equal of an answer; both ways may find different faults in a body."""
    headers = [answer.headers.get(name) for name in _COMPARED]
    document = answer.document if answer.body else None
    if isinstance(document, dict) and document.get("code") == "MALFORMED":
        del document["detail"]
    return answer.status, *headers, document


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """Return settings with tokens and streams."""
    path = tmp_path / "tokens"
    path.write_text("".join(f"{_line(*item)}\n" for item in TOKENS.items()))
    return {
        "AUTH_TOKENS": str(path), "STREAMS": STREAMS, "MAX_PAYLOADS": "20",
        "CORS_ORIGINS": "https://x.example",
    }  # fmt: skip


def running(settings: dict[str, str]) -> AbstractAsyncContextManager[Rig]:
    """Run a server with these settings."""
    return rigs.running(None, max_connections=50, options=None, **settings)


async def test_random_requests_reach_streams_and_refusals(
    settings: dict[str, str], refusals: list[Refusal]
) -> None:
    """The next tests would test nothing."""
    accepted: Counter[int] = Counter()
    statuses: Counter[object] = Counter()
    pipelined = connections = 0
    async with running(settings) as rig:
        for chance in known_cases(400):
            outcome = await outcome_of(rig, [[one] for one in make_case(chance)])
            accepted.update(outcome.accepted.streams)
            statuses.update(answer[0] for answer in outcome.answers)
        for chance in known_cases(100):
            outcome = await outcome_of(rig, [[one] for one in make_pipelined_case(chance)])
            pipelined += len(outcome.answers)
            connections += 1
    refusals.clear()  # some of the paths are too odd for the description
    assert min(accepted[stream] for stream in (0, 1, 2)) >= 3, accepted
    assert min(statuses[one] for one in (202, 400, 401, 403, 404)) >= 5, statuses
    assert pipelined > 2 * connections, "nearly all connections end at once"


async def test_both_ways_in_answer_alike_and_accept_the_same(
    fuzz: Fuzz,
    settings: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    refusals: list[Refusal],
) -> None:
    """A client could pass a check, or reach another stream, by an odd spelling of its request."""
    monkeypatch.setattr(rigs, "HAS_FAST_PATH", False)
    async with running(settings) as reference:
        monkeypatch.setattr(rigs, "HAS_FAST_PATH", True)
        async with running(settings) as fast:
            for chance in fuzz.cases():
                requests = make_case(chance)
                pieces = [_pieces(request, chance) for request in requests]
                chunked = b"chunked" in b"".join(chain(*pieces)).lower()
                with trio.fail_after(60):
                    expected, found = await outcomes_of((reference, fast), pieces)
                equal = alike(found, expected, chunked=chunked)
                if not equal and (found.waited or expected.waited):
                    with trio.fail_after(300):
                        expected, found = await outcomes_of((reference, fast), pieces, _LONG_IDLE)
                    equal = alike(found, expected, chunked=chunked)
                assert equal, (requests, expected, found)
    refusals.clear()  # as above


async def test_requests_in_one_write_are_answered_like_single_ones(
    fuzz: Fuzz, settings: dict[str, str], refusals: list[Refusal]
) -> None:
    """A client that does not wait for its answers would get those of other requests, or none."""
    async with running(settings) as rig:
        for chance in fuzz.cases():
            requests = make_pipelined_case(chance)
            with trio.fail_after(60):
                each = [[request] for request in requests]
                expected = await outcome_of(rig, each, _LONG_IDLE)
                found = await pipelined_outcome_of(rig, requests, chance)
            assert found == expected, requests
    refusals.clear()  # as above


async def pipelined_outcome_of(rig: Rig, requests: list[bytes], chance: random.Random) -> Outcome:
    """Send all requests of a connection, cut at random places, without waiting for an answer."""
    intake = rig.intake
    intake.taken, intake.streams, intake.keys = [], [], []
    answers: list[Answer] = []
    async with rig.wire() as wire, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def _send() -> None:
            with suppress(trio.BrokenResourceError):
                for piece in pieces_of(b"".join([*requests, _LAST]), chance):
                    await wire.send(piece)
                    if chance.random() < 0.5:
                        await trio.lowlevel.checkpoint()

        with suppress(trio.BrokenResourceError, EOFError):
            while True:
                answers.append(await _final(wire))
    accepted = Accepted(intake.taken, intake.streams, intake.keys)
    return Outcome([*map(_shown, answers)], accepted)


def _pieces(request: bytes, chance: random.Random) -> list[bytes]:
    """Return a request with a head in pieces.

    The body comes with the last one: a client that sends it after its refusal may lose the answer.
    """
    end = request.find(b"\r\n\r\n") + 3
    *first, last = [*pieces_of(request[:end], chance), b""]
    return [*first, last + request[end:]]


def _line(token: bytes, client: str) -> str:
    """Return the line of a token in the file of AUTH_TOKENS."""
    name, _, streams = client.partition(":")
    digest = hashlib.sha256(token).hexdigest()
    return ":".join((name, digest, streams) if streams else (name, digest))
