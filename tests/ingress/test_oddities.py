"""Unusual HTTP, valid and invalid, is answered alike on both paths.

Each case is sent to the fast path and to Hypercorn alone. The status, the code, whether the
connection is kept, and the accepted payloads must be equal.
"""

from __future__ import annotations

import hashlib
import random
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypercorn.trio.tcp_server import TCPServer

from tests.ingress import rig as rigs
from tests.ingress.mangled import TOKEN, mangled
from tests.ingress.rig import COLLECTION, SOON, post, running

if TYPE_CHECKING:
    from pathlib import Path

    from tests.ingress.rig import Rig, Wire

START = b"POST /v1/payloads HTTP/1.1"
HOST = b"Host: x"
TYPE = b"Content-Type: application/json"
LENGTH = b"Content-Length: 22"
CHUNKED = b"Transfer-Encoding: chunked"
IN_CHUNKS = b"16\r\n" + COLLECTION + b"\r\n0\r\n\r\n"
TAKEN = [b"1", b'"two"']

_COMPARED = ("connection", "access-control-allow-origin", "www-authenticate")
ACCEPTED = (202, None)
MALFORMED = (400, "MALFORMED")


def request(*lines: bytes, start: bytes = START, body: bytes = COLLECTION) -> bytes:
    """Return a request with these header lines and no others."""
    return b"".join(line + b"\r\n" for line in (start, *lines, b"")) + body


async def exchange(rig: Rig, wire: Wire, sent: bytes) -> tuple[int, str | None, bool]:
    """Send; return status, code, and whether the connection can be used for another request."""
    taken = len(rig.intake.taken)
    with trio.fail_after(SOON):
        with suppress(trio.BrokenResourceError):
            await wire.send(sent)
        answer = await wire.answer()
        accepted = answer.status == 202
        assert rig.intake.taken[taken:] == [TAKEN] * accepted
        kept = answer.headers.get("connection") != "close"
        if kept:
            await wire.send(post())
            assert (await wire.answer()).status == 202
        else:
            assert await wire.rest() == b""
    return answer.status, None if accepted else answer.document["code"], kept


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    "sent",
    [
        request(HOST.upper(), b"CONTENT-TYPE: application/json", LENGTH.upper()),
        request(HOST.lower(), TYPE.lower(), LENGTH.lower()),
        request(b"Host:x", b"Content-Type:\t application/json \t", b"Content-Length:22  "),
        request(HOST, TYPE, LENGTH, b"Connection: Keep-Alive"),
        request(HOST, TYPE, LENGTH, b"Connection: upgrade", b"Upgrade: h2c"),
        request(HOST, TYPE, LENGTH, b"TE: trailers"),
        request(HOST, TYPE, LENGTH, b"Expect: something-else"),
        request(HOST, TYPE, LENGTH, b"X: \xff"),
        request(HOST, TYPE, LENGTH, b"X:"),
        request(HOST, TYPE, LENGTH, b"X: " + b"y" * 16_000),
        request(HOST, TYPE, LENGTH, *[b"X-%d: y" % number for number in range(500)]),
        request(HOST, TYPE, b"Content-Length: 0022"),
        request(HOST, TYPE, CHUNKED, body=IN_CHUNKS),
        request(HOST, TYPE, CHUNKED.upper().replace(b"CHUNKED", b"Chunked"), body=IN_CHUNKS),
        request(HOST, TYPE, LENGTH, start=b"POST http://x/v1/payloads HTTP/1.1"),
        request(HOST, TYPE, LENGTH, start=b"POST /v1/payloads?x=1 HTTP/1.1"),
        request(HOST, TYPE, LENGTH, start=b"POST /v1/payload%73 HTTP/1.1"),
        request(HOST, TYPE, LENGTH, start=b"post /v1/payloads HTTP/1.1"),
        request(b"Host:", TYPE, LENGTH),
        request(HOST, TYPE, LENGTH, b"Content-Encoding: identity", b"Content-Encoding: identity"),
    ],
)
async def test_odd_but_valid_requests_are_accepted(sent: bytes) -> None:
    """Otherwise a client that writes HTTP differently from most would be refused, or cut off."""
    async with running() as rig, rig.wire() as wire:
        assert await exchange(rig, wire, sent) == (*ACCEPTED, True)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    "sent",
    [
        request(TYPE, LENGTH, start=b"POST /v1/payloads HTTP/1.0"),
        request(HOST, TYPE, LENGTH, b"Connection: close"),
    ],
)
async def test_a_request_for_one_answer_is_accepted_and_the_connection_closed(sent: bytes) -> None:
    """Otherwise a client that wants one answer would wait for ever for the connection to end."""
    async with running() as rig, rig.wire() as wire:
        assert await exchange(rig, wire, sent) == (*ACCEPTED, False)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    "sent",
    [
        request(HOST, TYPE, LENGTH, CHUNKED, body=IN_CHUNKS),
        request(HOST, TYPE, CHUNKED, LENGTH),
        request(HOST, TYPE, LENGTH, b"Content-Length: 21"),
        request(HOST, TYPE, b"Content-Length: +22"),
        request(HOST, TYPE, b"Content-Length: 0x16"),
        request(HOST, TYPE, b"Content-Length: \xb2"),
        request(HOST, TYPE, b"Content-Length:"),
        request(HOST, TYPE, b"Content-Length: " + b"0" * 5000 + b"22"),
        request(HOST, TYPE, b"Content-Length : 22"),
        request(HOST, TYPE, LENGTH, b"X: a\0b"),
        request(HOST, TYPE, LENGTH, b"X\0: a"),
        request(HOST, TYPE, LENGTH, b"X: a\rY: b"),
        request(HOST, TYPE, LENGTH, b": a"),
        request(HOST, TYPE, LENGTH, b"X"),
        request(TYPE, LENGTH),
        request(HOST, HOST, TYPE, LENGTH),
        request(HOST, TYPE, LENGTH, start=b"POST  /v1/payloads HTTP/1.1"),
        b"\r\n" + request(HOST, TYPE, LENGTH),
        request(HOST, TYPE, LENGTH, b"Transfer-Encoding: identity"),
        request(HOST, TYPE, LENGTH, b"X: \xff\x7f\x01"),
        request(HOST, TYPE, LENGTH, b"X: " + b"y" * 17_000),
        request(HOST, TYPE, LENGTH, LENGTH),
        request(HOST, TYPE, b"Content-Length: 22, 22"),
        request(HOST, b"Content-Type:\r\n application/json", LENGTH),
        request(HOST, TYPE, LENGTH, b"X: a\r\n\tb"),
        request(HOST, b"X: a\nY: b", TYPE, LENGTH),
        request(HOST, TYPE, LENGTH).replace(b"\r\n", b"\n"),
        request(HOST, TYPE, LENGTH + b"\n\n" + COLLECTION, body=b"")[: -len(b"\r\n\r\n")],
        request(HOST, TYPE, LENGTH, b"X: \x01"),
        request(HOST, TYPE, LENGTH, b"X: \x7f"),
        request(b"Host: a b", TYPE, LENGTH),
        request(HOST, TYPE, CHUNKED, body=IN_CHUNKS, start=b"POST /v1/payloads HTTP/1.0"),
        START + b"\r\n" + b"X: y\r\n" * 20_000,
        START + b"\r\nX: " + b"y" * 60_000,
    ],
)
async def test_ambiguous_requests_are_refused_and_the_connection_closed(sent: bytes) -> None:
    """Otherwise a request that two parsers read differently would be smuggled past a proxy."""
    async with running() as rig, rig.wire() as wire:
        assert await exchange(rig, wire, sent) == (*MALFORMED, False)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    ("sent", "status", "code", "kept"),
    [
        (request(HOST, TYPE, b"Content-Length: 3", body=b"[1,"), *MALFORMED, True),
        (request(HOST, TYPE, b"Content-Length: 0", body=b""), *MALFORMED, True),
        (request(HOST, TYPE, body=b""), *MALFORMED, True),
        (request(HOST, TYPE, LENGTH, b"Idempotency-Key: a b"), *MALFORMED, True),
        (request(HOST, TYPE, LENGTH, b"Idempotency-Key:"), *MALFORMED, True),
        (request(HOST, TYPE, LENGTH, *[b"Idempotency-Key: a"] * 2), *MALFORMED, True),
        (request(HOST, TYPE, b"Content-Length: 3", body=b"{ }"), 422, "NOT_A_COLLECTION", True),
        (request(HOST, LENGTH), 415, "UNSUPPORTED_TYPE", False),
        (request(HOST, b"Content-Length: 0", body=b""), 415, "UNSUPPORTED_TYPE", True),
        (request(HOST, TYPE, b"Content-Type: text/plain", LENGTH), 415, "UNSUPPORTED_TYPE", False),
        (request(HOST, TYPE, LENGTH, b"Content-Encoding: br"), 415, "UNSUPPORTED_ENCODING", False),
        (request(HOST, TYPE, b"Content-Length: 99999999"), 413, "TOO_LARGE", False),
        (request(HOST, TYPE, b"Content-Length: 16777217"), 413, "TOO_LARGE", False),
    ],
)
async def test_refused_requests_have_the_documented_code(
    sent: bytes, status: int, code: str, *, kept: bool
) -> None:
    """Otherwise the fast path would give another reason than the documented one."""
    async with running() as rig, rig.wire() as wire:
        assert await exchange(rig, wire, sent) == (status, code, kept)
        assert rig.counted(status) == 1


@pytest.mark.usefixtures("each_way")
async def test_an_idempotency_key_is_stripped_and_used() -> None:
    """Otherwise the second try of a client would be stored a second time."""
    async with running() as rig, rig.wire() as wire:
        sent = request(HOST, TYPE, LENGTH, b"Idempotency-Key:  k~! \t")
        assert await exchange(rig, wire, sent) == (*ACCEPTED, True)
        assert rig.intake.keys[0] == "k~!"


@pytest.mark.usefixtures("each_way")
async def test_a_request_may_be_cut_at_every_byte() -> None:
    """Otherwise a request that arrives in two segments would be misread."""
    whole = post()
    async with running() as rig, rig.wire() as wire:
        for cut in range(1, len(whole)):
            await wire.send(whole[:cut])
            await trio.testing.wait_all_tasks_blocked()
            await wire.send(whole[cut:])
            assert (await wire.answer()).status == 202
        assert rig.intake.taken == [TAKEN] * (len(whole) - 1)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("cut", [0, 10, 70, 100, 130])
async def test_two_pipelined_requests_may_be_cut_anywhere(cut: int) -> None:
    """Otherwise the second of two requests in one segment would be lost, or answered first."""
    async with running() as rig, rig.wire() as wire:
        one, two = post(), post(b'{"payloads":[3]}')
        await wire.send(one[:cut])
        await trio.testing.wait_all_tasks_blocked()
        await wire.send(one[cut:], two)
        assert [(await wire.answer()).document["accepted"] for _ in range(2)] == [2, 1]
        assert rig.intake.taken == [TAKEN, [b"3"]]


@pytest.mark.usefixtures("each_way")
async def test_bytes_behind_a_body_are_the_next_request() -> None:
    """Otherwise the bytes behind a body would become part of it, or be dropped silently."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(post(), b"junk\r\n\r\n")
        assert (await wire.answer()).status == 202
        assert (await wire.answer()).status == 400
        assert await wire.rest() == b""
        assert rig.intake.taken == [TAKEN]


@pytest.mark.usefixtures("each_way")
async def test_a_body_shorter_than_its_content_length_is_malformed() -> None:
    """Otherwise half of a collection would be accepted as the whole."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(request(HOST, TYPE, b"Content-Length: 30"))
        await trio.testing.wait_all_tasks_blocked()
        await wire.stream.send_eof()
        answer = await wire.answer()
        assert (answer.status, answer.document["code"]) == MALFORMED
        assert rig.intake.taken == []


@pytest.mark.usefixtures("each_way")
async def test_a_415_does_not_wait_for_the_body() -> None:
    """Otherwise a client would send all of its body before it learns that its type is wrong."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(request(HOST, b"Content-Length: 1000"))
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (415, "close")


async def answers(seeds: range, **settings: str) -> list[tuple[bytes, list[object]]]:
    """Return for each seed the sent bytes, the first answer, and the accepted payloads.

    A 100 is no answer. Later answers are left out: of pipelined requests Hypercorn loses a 415
    every other time.
    """
    found: list[tuple[bytes, list[object]]] = []
    timeouts = {"REQUEST_TIMEOUT": "5s", "KEEPALIVE_TIMEOUT": "5s"}

    async def send_and_record(sent: bytes, received: list[object]) -> None:
        async with (
            rigs.running(None, max_connections=50, options=None, **timeouts, **settings) as rig,
            rig.wire() as wire,
        ):
            await wire.send(sent)
            with suppress(EOFError, ValueError, trio.BrokenResourceError), trio.fail_after(300):
                # Whether a 100 is sent depends on when the body is read.
                while (answer := await wire.answer()).status == 100:
                    pass
                shown = [answer.headers.get(name) for name in _COMPARED]
                received.append((answer.status, *shown))
                await wire.rest()
            received += rig.intake.taken

    async with trio.open_nursery() as nursery:
        for seed in seeds:
            found.append((mangled(random.Random(seed)), []))  # noqa: S311 - not for secrets
            nursery.start_soon(send_and_record, *found[-1])
    return found


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("guarded", "seeds"),
    [
        pytest.param(False, range(75), id="open"),
        pytest.param(True, range(1000, 1050), id="guarded"),
        pytest.param(False, range(75, 150), id="open-more", marks=pytest.mark.large),
        pytest.param(True, range(1050, 1100), id="guarded-more", marks=pytest.mark.large),
    ],
)
async def test_mangled_requests_are_answered_alike_on_both_paths(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    guarded: bool,  # noqa: FBT001 - pytest passes it by name
    seeds: range,
) -> None:
    """Otherwise the fast path and Hypercorn would read unforeseen bytes differently."""
    settings = {}
    if guarded:
        digest = hashlib.sha256(TOKEN.encode()).hexdigest()
        (tmp_path / "tokens").write_text(f"x:{digest}\n")
        settings = {
            "AUTH_TOKENS": str(tmp_path / "tokens"), "CORS_ORIGINS": "https://x.example",
        }  # fmt: skip
    by_fast_path = await answers(seeds, **settings)
    monkeypatch.setattr(rigs, "HAS_FAST_PATH", False)
    assert by_fast_path == await answers(seeds, **settings)


# --- which path answers ------------------------------------------------------------------------


async def test_plain_requests_never_reach_hypercorn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise all requests would be accepted, at a multiple of the cost."""
    monkeypatch.setattr(TCPServer, "run", None)
    async with running() as rig, rig.wire() as wire:
        for _ in range(3):
            await wire.send(post())
            assert (await wire.answer()).status == 202
        await wire.send(post(b"{}"))
        assert (await wire.answer()).status == 422
        assert (rig.counted(202), rig.counted(422)) == (3, 1)


async def test_no_request_of_http_1_reaches_hypercorn(handed_over: list[TCPServer]) -> None:
    """Such a request would cost twenty times as much."""
    page = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    async with running() as rig, rig.wire() as wire:
        for sent in (post(), page, request(HOST, TYPE, CHUNKED, body=IN_CHUNKS), page * 2 + post()):
            await wire.send(sent)
            for _ in range(sent.count(b" HTTP/1.1")):
                assert (await wire.answer()).status in {200, 202}
        await wire.send(b"nonsense\r\n\r\n")
        assert (await wire.answer()).status == 400
    assert not handed_over
