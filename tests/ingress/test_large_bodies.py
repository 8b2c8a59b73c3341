"""Large bodies: decoded in a process of their own, which may die, and never held the loop up."""

from __future__ import annotations

import gzip
import json
import os
import signal
from time import perf_counter
from typing import TYPE_CHECKING

import pytest
import trio
import zstandard

from payloadd.errors import RefusedError
from payloadd.ingress import large_bodies
from payloadd.ingress.body import Limits, decode
from payloadd.ingress.large_bodies import LargeBodies, LargeBody, Lines
from payloadd.ingress.problem import Problem
from tests.ingress.rig import post, running

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from typing import Any

MIB = 2**20
LIMITS = Limits(16 * MIB, 100_000)
JSON, LINES = "application/json", "application/x-ndjson"

Outcome = Lines | Problem | RefusedError


async def settled() -> None:
    """There is memory for the next."""


async def outcome_of(
    bodies: LargeBodies, data: bytes, content_type: str = JSON, coding: str | None = None
) -> Outcome:
    """Return what becomes of a body."""
    outcomes: list[Outcome] = []
    done = trio.Event()

    async def take(lines: Lines) -> None:
        outcomes.append(lines)
        done.set()

    def refuse(problem: Problem | RefusedError) -> None:
        outcomes.append(problem)
        done.set()

    bodies.add(LargeBody(data, 0, content_type, coding, take, refuse, "192.0.2.1"))
    with trio.fail_after(60):
        await done.wait()
    return outcomes[0]


def telemetry(count: int) -> list[bytes]:
    """Return payloads of about 150 bytes."""
    return [
        json.dumps({"number": number, "text": "é" * 30, "more": [number, {"a": None}]}).encode()
        for number in range(count)
    ]


async def test_the_process_decodes_what_the_loop_would(nursery: trio.Nursery) -> None:
    """A large request would be stored otherwise than a small one."""
    bodies = LargeBodies(LIMITS, 60, settled)
    nursery.start_soon(bodies.run)
    payloads = telemetry(20_000)
    whole = b"".join(payload + b"\n" for payload in payloads)
    collection = b'{"payloads":[' + b",".join(payloads) + b"]}"
    for data, content_type, coding in (
        (whole, LINES, None),
        (collection, JSON, None),
        (gzip.compress(whole), LINES, "gzip"),
        (zstandard.compress(collection), JSON, "zstd"),
        (b'{"payloads":[\n' + b",\r\n".join(payloads) + b"]}", JSON, None),
    ):
        outcome = await outcome_of(bodies, data, content_type, coding)
        assert isinstance(outcome, Lines)
        assert outcome.text == whole
        assert [*outcome.sizes] == [*map(len, payloads)]


@pytest.mark.parametrize(
    ("data", "content_type", "code"),
    [
        (b'{"payloads":[' + b"1," * 100_000 + b"1]}", JSON, "TOO_LARGE"),
        (b'{"payloads":[[1],' + b"1," * 2_000_000 + b"1]}", JSON, "TOO_LARGE"),
        (b"1\n" * 100_001, LINES, "TOO_LARGE"),
        (b'{"payloads":[' + b"1," * 90_000 + b"]}", JSON, "MALFORMED"),
        (b"1\n" * 90_000 + b"x\n", LINES, "MALFORMED"),
        (b'{"a":' + b"[1]," * 10, JSON, "MALFORMED"),
    ],
)
async def test_what_the_process_refuses(
    data: bytes, content_type: str, code: str, nursery: trio.Nursery
) -> None:
    """A large request that is wrong would be answered with a 500, or for a wrong reason."""
    bodies = LargeBodies(LIMITS, 60, settled)
    nursery.start_soon(bodies.run)
    problem = await outcome_of(bodies, data, content_type)
    assert isinstance(problem, Problem)
    assert problem.code == code
    with pytest.raises(Problem) as caught:
        decode(data, content_type, None, LIMITS)
    assert caught.value.detail == problem.detail


@pytest.mark.parametrize("inner", [b"1", b'"a,]}"', b"[]", b"[[[[1]]]]", b'{"a":[1,{}]}'])
def test_payloads_are_counted_however_they_look(inner: bytes) -> None:
    """A document with a million commas inside of its payloads would be refused for them."""
    payload = b"[" + b",".join([inner] * 1000) + b"]"
    for count in (999, 1000, 1001):
        body = b'{"payloads":[' + b",".join([payload] * count) + b"]}"
        if count <= 1000:
            assert len(decode(body, JSON, None, Limits(16 * MIB, 1000))) == count
        else:
            with pytest.raises(Problem, match="MAX_PAYLOADS"):
                decode(body, JSON, None, Limits(16 * MIB, 1000))


async def test_a_body_that_kills_the_process_is_refused_and_the_next_one_is_not(
    nursery: trio.Nursery, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """One request would take away large requests from all clients."""
    bodies = LargeBodies(LIMITS, 60, settled)
    nursery.start_soon(bodies.run)
    assert isinstance(await outcome_of(bodies, b'{"payloads":[1]}'), Lines)
    process = bodies.process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)

    async def kill() -> None:
        os.kill(process.pid, signal.SIGKILL)

    nursery.start_soon(kill)
    refused = await outcome_of(bodies, b'{"payloads":[2]}')
    if isinstance(refused, RefusedError):  # else it was found dead before the body was sent
        assert refused.code == "BUSY"
        assert [line["event"] for line in log_lines] == ["body_process_failed"]
    assert isinstance(await outcome_of(bodies, b'{"payloads":[3]}'), Lines)


async def test_a_body_that_takes_too_long_is_given_up(
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    log_lines: list[MutableMapping[str, Any]],
) -> None:
    """Large requests of all clients would wait behind it for ever."""
    bodies = LargeBodies(LIMITS, 60, settled)
    nursery.start_soon(bodies.run)
    assert isinstance(await outcome_of(bodies, b'{"payloads":[1]}'), Lines)
    process = bodies.process
    assert process is not None
    monkeypatch.setattr(large_bodies, "_SECONDS", 0.2)
    monkeypatch.setattr(large_bodies, "_END_SECONDS", 0.2)
    os.kill(process.pid, signal.SIGSTOP)
    refused = await outcome_of(bodies, b'{"payloads":[2]}')
    assert isinstance(refused, RefusedError)
    assert refused.code == "BUSY"
    assert process.ended
    monkeypatch.setattr(large_bodies, "_SECONDS", 30)
    assert isinstance(await outcome_of(bodies, b'{"payloads":[3]}'), Lines)
    assert [line["event"] for line in log_lines] == ["body_process_failed"]


async def test_the_process_ends_when_it_is_not_needed(
    nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon that takes small requests would keep 30 MiB for nothing."""
    monkeypatch.setattr(large_bodies, "_IDLE_SECONDS", 0.1)
    bodies = LargeBodies(LIMITS, 60, settled)
    nursery.start_soon(bodies.run)
    assert isinstance(await outcome_of(bodies, b'{"payloads":[1]}'), Lines)
    with trio.fail_after(20):
        while bodies.process is not None:  # noqa: ASYNC110 - nothing tells of it
            await trio.sleep(0.01)
    assert isinstance(await outcome_of(bodies, b'{"payloads":[1]}'), Lines)


async def test_a_body_without_a_thread_is_refused(
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    log_lines: list[MutableMapping[str, Any]],
) -> None:
    """At the system's limit of threads one large request would end the daemon."""
    bodies = LargeBodies(LIMITS, 60, settled)
    nursery.start_soon(bodies.run)

    async def no_thread(_: LargeBody) -> Lines:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(bodies, "_decode", no_thread)
        refused = await outcome_of(bodies, b'{"payloads":[1]}')
    assert isinstance(refused, RefusedError)
    assert refused.code == "BUSY"
    assert isinstance(await outcome_of(bodies, b'{"payloads":[2]}'), Lines)
    assert [line["event"] for line in log_lines] == ["body_process_failed"]


async def test_clients_take_turns(nursery: trio.Nursery) -> None:
    """A client with a thousand large requests would keep those of all others waiting."""
    order: list[str] = []
    finished = trio.Event()

    async def take(lines: Lines) -> None:
        order.append(lines.text.decode().strip())
        if len(order) == 6:
            finished.set()

    def refuse(problem: Problem | RefusedError) -> None:
        pytest.fail(str(problem))

    bodies = LargeBodies(LIMITS, 60, settled)
    for number in range(4):
        data = b'{"payloads":[%d]}' % number
        bodies.add(LargeBody(data, 0, JSON, None, take, refuse, client="192.0.2.1"))
    for number in (8, 9):
        data = b'{"payloads":[%d]}' % number
        bodies.add(LargeBody(data, 0, JSON, None, take, refuse, client="192.0.2.2"))
    nursery.start_soon(bodies.run)
    with trio.fail_after(60):
        await finished.wait()
    assert order == ["0", "8", "1", "9", "2", "3"]


async def test_a_body_that_waited_too_long_is_refused(nursery: trio.Nursery) -> None:
    """Requests whose clients have given up would be stored, and stored again when repeated."""
    bodies = LargeBodies(LIMITS, -1, settled)
    nursery.start_soon(bodies.run)
    refused = await outcome_of(bodies, b'{"payloads":[1]}')
    assert isinstance(refused, RefusedError)
    assert refused.code == "BUSY"


async def test_a_client_with_many_large_bodies_is_refused_at_once(nursery: trio.Nursery) -> None:
    """Requests of 200 bytes that take long to decode would keep all connections for 30 s."""
    taken = 0
    finished = trio.Event()

    async def take(_: Lines) -> None:
        nonlocal taken
        taken += 1
        if taken == 65:
            finished.set()

    def refuse(problem: Problem | RefusedError) -> None:
        pytest.fail(str(problem))

    def add(client: str) -> None:
        bodies.add(LargeBody(b'{"payloads":[1]}', 0, JSON, None, take, refuse, client))

    bodies = LargeBodies(LIMITS, 60, settled)
    for _ in range(64):
        add("192.0.2.1")
    with pytest.raises(Problem, match="too many large requests"):
        add("192.0.2.1")
    add("192.0.2.2")
    nursery.start_soon(bodies.run)
    with trio.fail_after(60):
        await finished.wait()
    add("192.0.2.1")


async def test_small_requests_go_by_while_large_ones_are_decoded() -> None:
    """Every client would wait for the largest document of another."""
    wide = b'{"payloads":[[' + b"1," * (4 * MIB) + b"1]]}"
    async with running(BATCH_MAX_PAYLOADS="10000") as rig, rig.wire() as large, rig.wire() as small:
        await small.send(post())
        assert (await small.answer()).status == 202
        answered = trio.Event()
        waits: list[float] = []

        async def send_large() -> None:
            await large.send(post(wide))
            assert (await large.answer()).status == 202
            answered.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_large)
            while not answered.is_set():
                start = perf_counter()
                await small.send(post())
                assert (await small.answer()).status == 202
                waits.append(perf_counter() - start)
        assert max(len(taken) for taken in rig.intake.taken) == 2
        assert rig.intake.taken.count([wide[13:-2]]) == 1
        assert len(waits) > 3
        assert max(waits) < 2.0  # it is about 5 ms on a quiet machine
        # Decoded in the event loop it would be 0.1 s, which a busy machine has of itself.
        assert rig.submitter is not None
        assert rig.submitter.large_bodies.process is not None


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_memory_is_given_back_whatever_becomes_of_a_request(
    coding: str, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """Each refused request would leave less memory for the next, until all are refused."""
    pack = gzip.compress if coding == "gzip" else zstandard.compress
    headers = (f"Content-Type: {LINES}", f"Content-Encoding: {coding}")
    async with running(MAX_LENGTH="1MiB", MAX_REQUEST_BYTES="1MiB") as rig:

        async def status_of(body: bytes) -> int:
            async with rig.wire() as wire:
                await wire.send(post(pack(body), *headers))
                return (await wire.answer()).status

        assert await status_of(b"1\n") == 202
        assert await status_of(b"1\n" * 5000) == 202
        assert await status_of(b"x") == 400
        assert await status_of(b"1\n" * 5000 + b"x") == 400
        assert await status_of(b" " * 500_000) == 202
        assert await status_of(b" " * 2_000_000) == 413
        assert await status_of(b"1\n" * 100_001) == 413
        rig.intake.late = RefusedError("DISK_ERROR", "full", 1)
        assert await status_of(b"1\n") == 503
        assert await status_of(b"1\n" * 5000) == 503
        rig.intake.late, rig.intake.fault = None, KeyError("bug")
        assert await status_of(b"1\n") == 500
        assert await status_of(b"1\n" * 5000) == 500
        assert rig.submitter is not None
        assert rig.submitter.memory.used == 0
    assert {line["event"] for line in log_lines} == {"request_failed", "request_refused"}


async def test_the_loop_is_called_busy_for_as_long_as_a_body_is_worked_on(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    """The pipeline would have to wait for the interpreter's lock while it writes a large body."""
    monkeypatch.setattr(large_bodies, "_BUSY_EVERY", 0.01)
    calls = 0
    enough = trio.Event()

    def busy() -> None:
        nonlocal calls
        calls += 1
        if calls == 100:
            enough.set()

    async def take(_lines: Lines) -> None:
        await enough.wait()
        taken.set()

    def refuse(problem: Problem | RefusedError) -> None:
        pytest.fail(str(problem))

    taken = trio.Event()
    bodies = LargeBodies(LIMITS, 60, settled, busy)
    nursery.start_soon(bodies.run)
    bodies.add(LargeBody(b"1\n", 0, LINES, None, take, refuse, "192.0.2.1"))
    with trio.fail_after(60):
        await taken.wait()
        await outcome_of(bodies, b"2\n", LINES)
    assert calls >= 101
