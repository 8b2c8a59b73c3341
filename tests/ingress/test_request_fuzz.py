"""Random requests with tokens and streams: both ways in answer alike, and accept the same."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from base64 import b64encode
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest
import trio
import zstandard

from tests.ingress import rig as rigs
from tests.ingress.rig import COLLECTION, post
from tests.ingress.test_body_fuzz import make_collection, make_lines, make_value
from tests.support.fuzz import known_cases, mutate, pieces_of

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.ingress.conftest import Refusal
    from tests.ingress.rig import Answer, Rig, Wire
    from tests.support.fuzz import Fuzz

_STREAMS: Final = "clicks,errors"
_TOKENS: Final = {
    b"all-streams": "web",
    b"clicks-only": "ci:clicks",
    b"default-only": "main:default",
    b"no-stream": "old:gone",
}
_PATHS: Final = (
    *(b"/v1/payloads", b"/v1/payloads/clicks", b"/v1/payload/errors", b"/v1/payload"),
    *(b"/v1/payloads/default", b"/v1/payloads/errors/", b"/v1/payload/clicks/", b"/v1/payloads/"),
)
_ODD_PATHS: Final = (
    *(b"/v1/payloads/gone", b"/v1/payloads/CLICKS", b"/v1/payloads/clicks/x", b"/v1/payloads//"),
    *(b"/v1/payloads/clic%6bs", b"/v1/payloads%2Fclicks", b"/v1/payload%73/clicks", b"/healthz"),
    *(
        b"/v1/payloads/%00%ff",
        b"/v1/payloads/clicks?x=1",
        b"//v1/payloads",
        b"/v1/payloads/clicks\\",
    ),
    *(b"http://x/v1/payloads/clicks", b"*", b"/v1/payloads/" + b"s" * 300, b"/v1/payloads/."),
)
_METHODS: Final = (
    b"POST",
    b"POST",
    b"POST",
    b"POST",
    b"PUT",
    b"OPTIONS",
    b"PATCH",
    b"GET",
    b"post",
)
_VERSIONS: Final = (*[b"HTTP/1.1"] * 20, b"HTTP/1.0", b"http/1.1", b"HTTP/1.1 ")
_KINDS: Final = (
    *(b"application/json", b"application/x-ndjson", b"application/json; charset=utf-8"),
    *(
        b"text/plain",
        b"application/cloudevents+json",
        b"text/html",
        b"",
        b"application/json; x=\xff",
    ),
)
_KEYS: Final = (b"k", b"k2", b"", b"a b", b"k" * 256, b"\xe9", b"\x01")
_MORE: Final = (
    *(b"Origin: https://x.example", b"Origin: null", b"X-Other: y", b"Connection: close"),
    *(b"Connection: keep-alive", b"User-Agent: x/1 \xff", b"Accept: */*", b"Cookie: " + b"c" * 900),
    *(b"Prefer: wait=0", b"Expect: 100-continue", b"TE: trailers", b"Host: y", b"X-Empty:"),
    *(
        b"Proxy-Authorization: Bearer all-streams",
        b"Authorization:",
        b"X_a: b",
        b"Content-Length: 0",
    ),
)
_ODD_BYTES: Final = (
    *(b"\r", b"\n", b"\r\n", b"\0", b"\t", b" ", b":", b"/", b"%", b"%2f", b"?", b"#", b"\x7f"),
    *(b"\xff", b"clicks", b"errors", b"Transfer-Encoding: chunked\r\n", b"0", b"-", b"HTTP/1.1"),
    *(b"Authorization: Bearer clicks-only\r\n", b"\r\n\r\n", b" \r\n", b"POST /v1/payloads"),
)
_ODD_CHUNKS: Final = (
    *(
        b"\r",
        b"\n",
        b"\r\n",
        b"\0",
        b" ",
        b";",
        b"0",
        b"1",
        b"f",
        b"x",
        b"-",
        b"0\r\n\r\n",
        b"\r\n\r\n",
    ),
    *(b"Content-Length: 3\r\n", b"X : y\r\n", b" x\r\n", b"\xff", b'"', b"=", b"ffffffffffffffff1"),
)
_LAST: Final = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
"""The last request of each connection: the server closes after its answer."""
_MOST_BYTES: Final = 50_000
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


def make_head(chance: random.Random, size: int, *more: bytes) -> bytes:
    """Return a head whose parts are mostly valid, for a body of ``size`` bytes."""
    path = chance.choice(_PATHS if chance.random() < 0.85 else _ODD_PATHS)
    method = chance.choice(_METHODS if chance.random() < 0.3 else _METHODS[:5])
    lines = [b"Host: x", b"Content-Length: %d" % size, *more]
    if chance.random() < 0.95:
        kind = chance.choice(_KINDS if chance.random() < 0.2 else _KINDS[:2])
        lines.append(b"Content-Type: " + kind)
    if chance.random() < 0.95:
        token = chance.choice((*_TOKENS, b"all-streams", b"all-streams", b"clicks-only"))
        lines.append(_authorization(token, chance))
    if chance.random() < 0.3:
        lines.append(
            b"Idempotency-Key: " + chance.choice(_KEYS if chance.random() < 0.2 else _KEYS[:2])
        )
    if chance.random() < 0.3:
        lines += chance.choices(_MORE, k=chance.choice((1, 1, 2)))
    chance.shuffle(lines)
    version = chance.choice(_VERSIONS)
    if version == b"HTTP/1.0":  # Hypercorn never keeps such a connection
        lines = [line for line in lines if line != b"Connection: keep-alive"]
    first = b"%s %s %s" % (method, path, version)
    return b"\r\n".join((first, *lines, b"", b""))


def _authorization(token: bytes, chance: random.Random) -> bytes:
    match chance.randrange(12):
        case 0:
            return b"authorization: BEARER  " + token
        case 1:
            return b"Authorization: Basic " + b64encode(b"user:" + token)
        case 2:
            return b"AUTHORIZATION:Bearer " + token + b"x"
        case 3:
            return b"Authorization: Basic !"
        case _:
            return b"Authorization: Bearer " + token


def make_body(chance: random.Random) -> tuple[bytes, list[bytes]]:
    """Return a body, and the headers that it needs."""
    match chance.randrange(10):
        case 0:
            body = b""
        case 1:
            body = chance.randbytes(20)
        case 2 | 3:
            body = make_value(chance).encode()
        case 4 | 5:
            body = make_lines(chance)
        case 6 if chance.random() < 0.2:
            body = b'{"payloads":["%s"]}' % (b"x" * 40_000)
        case _:
            body = make_collection(chance)
    if len(body) > _MOST_BYTES:
        body = b"[" * 100  # what takes long to decode is tested by itself
    coding = chance.choice(("gzip", "zstd", "deflate", "identity", "br", *[""] * 25))
    pack: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress,
        "zstd": zstandard.compress,
        "deflate": zlib.compress,
    }
    if coding in pack and chance.random() < 0.9:
        body = pack[coding](body)
    return body, [f"Content-Encoding: {coding}".encode()] if coding else []


def make_request(chance: random.Random, *, odd: bool = True) -> bytes:
    """Return a request that is mostly valid; its framing is valid unless ``odd``."""
    body, more = make_body(chance)
    if chance.random() < 0.25:
        head = make_head(chance, 0, *more)
        head = head.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked", 1)
        return head + make_chunks(body, chance, odd=odd)
    head = make_head(chance, len(body), *more)
    if odd and chance.random() < 0.1:
        head = mutate(head, chance, _ODD_BYTES)
    return head + body


def make_chunks(body: bytes, chance: random.Random, *, odd: bool) -> bytes:
    """Return a body in chunks, with extensions and trailers now and then."""
    chunks = b"".join(
        chance.choice((b"%x", b"%X", b"00%x")) % len(one)
        + chance.choice((b"", b"", b"", b";a", b';a="b;\\" ";c=d'))
        + b"\r\n%b\r\n" % one
        for one in pieces_of(body, chance)
        if one
    )
    trailers = chance.choice((b"", b"", b"X: y\r\n", b"Idempotency-Key: k\r\nX:\r\n"))
    whole = chunks + chance.choice((b"0", b"0", b"000", b"0;a")) + b"\r\n" + trailers + b"\r\n"
    return mutate(whole, chance, _ODD_CHUNKS) if odd and chance.random() < 0.3 else whole


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


def make_case(chance: random.Random) -> list[bytes]:
    """Return the requests of a connection; each is sent after the answer to the last."""
    return [make_request(chance) for _ in range(chance.choice((1, 1, 2, 3)))]


def make_pipelined_case(chance: random.Random) -> list[bytes]:
    """Return requests that can be sent without waiting for an answer.

    Many are valid: nearly every other one ends its connection.
    """
    return [
        make_request(chance, odd=False) if chance.random() < 0.3 else make_valid_request(chance)
        for _ in range(chance.randrange(2, 9))
    ]


def make_valid_request(chance: random.Random) -> bytes:
    """Return a request that is accepted."""
    path = chance.choice(("/v1/payloads", "/v1/payloads/clicks", "/v1/payloads/errors"))
    body = chance.choice((COLLECTION, b'{"payloads":[]}', b'{"payloads":["%s"]}' % (b"x" * 9000)))
    headers = ("Authorization: Bearer all-streams", "Content-Type: application/json")
    return post(body, *headers, path=path)


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    """Return settings with tokens and streams."""
    path = tmp_path / "tokens"
    path.write_text("".join(f"{_line(*item)}\n" for item in _TOKENS.items()))
    return {
        "AUTH_TOKENS": str(path), "STREAMS": _STREAMS, "MAX_PAYLOADS": "20",
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
