"""Random requests with tokens and streams: both ways in answer alike, and accept the same."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from base64 import b64encode
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Final, NamedTuple

import trio
import zstandard

from tests.ingress import rig as rigs
from tests.ingress.test_body_fuzz import make_collection, make_lines, make_value
from tests.support.fuzz import mutate, pieces_of

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    import pytest

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
_REFUSED_BY_HEAD: Final = frozenset({401, 403, 404, 405, 415})
_IDLE: Final = 1.0
"""Seconds after which a server that has not closed the connection waits for more input."""
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


class Outcome(NamedTuple):
    """What a client and the pipeline see of the requests of one connection."""

    answers: list[tuple[object, ...]]
    payloads: list[list[bytes]]
    streams: list[int]
    keys: list[str | None]


async def outcome_of(rig: Rig, requests: list[list[bytes]]) -> Outcome:
    """Send requests on a new connection, each in its pieces and after the answer to the last."""
    intake = rig.intake
    intake.taken, intake.streams, intake.keys = [], [], []
    answers: list[Answer] = []
    async with rig.wire() as wire:
        with suppress(trio.BrokenResourceError, EOFError):
            for pieces in [*requests, [_LAST]]:
                for piece in pieces:
                    await wire.send(piece)
                with trio.move_on_after(_IDLE) as waiting:
                    answers.append(await _final(wire))
                if waiting.cancelled_caught:  # the server waits for the rest of the request
                    await wire.stream.send_eof()
                    break
                if answers[-1].headers.get("connection") == "close":
                    break
            while True:
                answers.append(await _final(wire))
    shown = [_shown(answer) for answer in answers]
    return Outcome(shown, intake.taken, intake.streams, intake.keys)


def alike(fast: Outcome, reference: Outcome, *, chunked: bool) -> bool:
    """Return whether the fast path may have this outcome.

    Where the chunks of a body are malformed and its head is refused too, Hypercorn answers 400: it
    reads the chunks first. In both cases nothing is accepted, and the connection ends. ``chunked``:
    whether a request has chunks.
    """
    *first, last = reference.answers or [()]
    if fast == reference or "MALFORMED" not in str(last):
        return fast == reference
    *others, end = fast.answers or [()]
    refused = "close" in end and end[0] in _REFUSED_BY_HEAD
    return chunked and refused and others == first and fast[1:] == reference[1:]


async def outcomes_of(sides: Sequence[Rig], requests: list[list[bytes]]) -> list[Outcome]:
    """Send the same requests to several servers at the same time."""
    found: dict[int, Outcome] = {}

    async def send(number: int) -> None:
        found[number] = await outcome_of(sides[number], requests)

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


async def test_both_ways_in_answer_alike_and_accept_the_same(
    fuzz: Fuzz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: list[Refusal]
) -> None:
    """A client could pass a check, or reach another stream, by an odd spelling of its request."""
    path = tmp_path / "tokens"
    path.write_text("".join(f"{_line(*item)}\n" for item in _TOKENS.items()))
    settings = {
        "AUTH_TOKENS": str(path), "STREAMS": _STREAMS, "MAX_PAYLOADS": "20",
        "CORS_ORIGINS": "https://x.example",
    }  # fmt: skip

    def running(*, fast_path: bool) -> AbstractAsyncContextManager[Rig]:
        monkeypatch.setattr(rigs, "HAS_FAST_PATH", fast_path)
        return rigs.running(None, max_connections=50, options=None, **settings)

    accepted: set[int] = set()
    codes: set[object] = set()
    async with running(fast_path=False) as reference, running(fast_path=True) as fast:
        for chance in fuzz.cases():
            requests = [make_request(chance) for _ in range(chance.choice((1, 1, 2, 3)))]
            pieces = [_pieces(request, chance) for request in requests]
            with trio.fail_after(60):
                found = await outcomes_of((reference, fast), pieces)
            expected = found[0]
            chunked = b"chunked" in b"".join(chain(*pieces)).lower()
            assert alike(found[1], expected, chunked=chunked), requests
            accepted.update(expected.streams)
            codes.update(answer[0] for answer in expected.answers)
    refusals.clear()  # some of the paths are too odd for the description
    enough = accepted == {0, 1, 2} and {202, 401, 403, 404} <= codes
    assert enough or fuzz.count < 200, "the requests are too wrong to test anything"


async def test_requests_in_one_write_are_answered_like_single_ones(
    fuzz: Fuzz, tmp_path: Path, refusals: list[Refusal]
) -> None:
    """A client that does not wait for its answers would get those of other requests, or none."""
    path = tmp_path / "tokens"
    path.write_text("".join(f"{_line(*item)}\n" for item in _TOKENS.items()))
    settings = {"AUTH_TOKENS": str(path), "STREAMS": _STREAMS, "MAX_PAYLOADS": "20"}
    answers = 0
    async with rigs.running(None, max_connections=50, options=None, **settings) as rig:
        for chance in fuzz.cases():
            requests = [make_request(chance, odd=False) for _ in range(chance.randrange(2, 9))]
            with trio.fail_after(60):
                expected = await outcome_of(rig, [[request] for request in requests])
                found = await pipelined_outcome_of(rig, requests, chance)
            assert found == expected, requests
            answers += len(expected.answers)
    refusals.clear()  # as above
    assert answers > fuzz.count or fuzz.count < 200, "nearly all connections end at once"


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
    return Outcome([*map(_shown, answers)], intake.taken, intake.streams, intake.keys)


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
