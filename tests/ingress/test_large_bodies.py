"""Large bodies: decoded in another process, which may die, and never in the event loop."""

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
from payloadd.ingress.body import Limits, decode
from payloadd.ingress.large_bodies import LargeBodies, LargeBody, Lines
from payloadd.ingress.problem import Problem
from tests.ingress.rig import SOON, post, running

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from typing import Any

MIB = 2**20
LIMITS = Limits(16 * MIB, 100_000)
JSON, LINES = "application/json", "application/x-ndjson"

Outcome = Lines | Problem | RefusedError


async def memory_available() -> None:
    """Return at once: there is memory for the next body."""


def connected() -> bool:
    """Say that a client is not gone."""
    return False


async def outcome_of(
    bodies: LargeBodies, data: bytes, content_type: str = JSON, coding: str | None = None
) -> Outcome:
    """Return the outcome of a body."""
    outcomes: list[Outcome] = []
    finished = trio.Event()

    async def submit(lines: Lines) -> None:
        outcomes.append(lines)
        finished.set()

    def refuse(problem: Problem | RefusedError) -> None:
        outcomes.append(problem)
        finished.set()

    bodies.add(LargeBody(data, 0, content_type, coding, submit, refuse, "192.0.2.1", connected))
    with trio.fail_after(60):
        await finished.wait()
    return outcomes[0]


def telemetry(count: int) -> list[bytes]:
    """Return payloads of about 150 bytes."""
    return [
        json.dumps({"number": number, "text": "é" * 30, "more": [number, {"a": None}]}).encode()
        for number in range(count)
    ]


async def test_the_process_and_the_event_loop_decode_alike(nursery: trio.Nursery) -> None:
    """Otherwise a large request would be stored differently from a small one."""
    bodies = LargeBodies(LIMITS, 60, memory_available)
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
async def test_the_process_refuses_like_the_event_loop(
    data: bytes, content_type: str, code: str, nursery: trio.Nursery
) -> None:
    """Otherwise a wrong large request would get a 500, or a wrong reason."""
    bodies = LargeBodies(LIMITS, 60, memory_available)
    nursery.start_soon(bodies.run)
    problem = await outcome_of(bodies, data, content_type)
    assert isinstance(problem, Problem)
    assert problem.code == code
    with pytest.raises(Problem) as caught:
        decode(data, content_type, None, LIMITS)
    assert caught.value.detail == problem.detail


@pytest.mark.parametrize("inner", [b"1", b'"a,]}"', b"[]", b"[[[[1]]]]", b'{"a":[1,{}]}'])
def test_commas_within_payloads_are_not_counted(inner: bytes) -> None:
    """Otherwise a document with a million commas within its payloads would be refused."""
    payload = b"[" + b",".join([inner] * 1000) + b"]"
    for count in (999, 1000, 1001):
        body = b'{"payloads":[' + b",".join([payload] * count) + b"]}"
        if count <= 1000:
            assert len(decode(body, JSON, None, Limits(16 * MIB, 1000))) == count
        else:
            with pytest.raises(Problem, match="MAX_PAYLOADS"):
                decode(body, JSON, None, Limits(16 * MIB, 1000))


async def test_after_a_body_that_kills_the_process_the_next_one_is_accepted(
    nursery: trio.Nursery, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """Otherwise one request would stop large requests of all clients."""
    bodies = LargeBodies(LIMITS, 60, memory_available)
    nursery.start_soon(bodies.run)
    assert isinstance(await outcome_of(bodies, b'{"payloads":[1]}'), Lines)
    process = bodies.process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)

    async def kill() -> None:
        os.kill(process.pid, signal.SIGKILL)

    nursery.start_soon(kill)
    refused = await outcome_of(bodies, b'{"payloads":[2]}')
    # Otherwise the process was found dead before the body was sent.
    if isinstance(refused, RefusedError):
        assert refused.code == "BUSY"
        assert [line["event"] for line in log_lines] == ["body_process_failed"]
    assert isinstance(await outcome_of(bodies, b'{"payloads":[3]}'), Lines)


async def test_a_body_that_takes_too_long_is_refused(
    nursery: trio.Nursery, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """Otherwise large requests of all clients would wait behind it for ever."""
    bodies = LargeBodies(LIMITS, 60, memory_available)
    nursery.start_soon(bodies.run)
    assert isinstance(await outcome_of(bodies, b'{"payloads":[1]}'), Lines)
    process = bodies.process
    assert process is not None
    bodies.decode_timeout = process.end_timeout = 0.2
    os.kill(process.pid, signal.SIGSTOP)
    refused = await outcome_of(bodies, b'{"payloads":[2]}')
    assert isinstance(refused, RefusedError)
    assert refused.code == "BUSY"
    assert process.ended
    bodies.decode_timeout = 30
    assert isinstance(await outcome_of(bodies, b'{"payloads":[3]}'), Lines)
    assert [line["event"] for line in log_lines] == ["body_process_failed"]


async def test_an_idle_process_ends(nursery: trio.Nursery) -> None:
    """Otherwise a daemon with small requests only would keep the memory of the process."""
    bodies = LargeBodies(LIMITS, 60, memory_available)
    bodies.idle_timeout = 0.1
    nursery.start_soon(bodies.run)
    assert isinstance(await outcome_of(bodies, b'{"payloads":[1]}'), Lines)
    with trio.fail_after(SOON):
        while bodies.process is not None:  # noqa: ASYNC110 - there is no event for it
            await trio.sleep(0.01)
    assert isinstance(await outcome_of(bodies, b'{"payloads":[1]}'), Lines)


async def test_a_body_is_refused_if_no_thread_can_start(
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    log_lines: list[MutableMapping[str, Any]],
) -> None:
    """Otherwise one large request would end the daemon at the system's limit of threads."""
    bodies = LargeBodies(LIMITS, 60, memory_available)
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
    """Otherwise one client with a thousand large requests would delay those of all others."""
    order: list[str] = []
    finished = trio.Event()

    async def submit(lines: Lines) -> None:
        order.append(lines.text.decode().strip())
        if len(order) == 6:
            finished.set()

    def refuse(problem: Problem | RefusedError) -> None:
        pytest.fail(str(problem))

    bodies = LargeBodies(LIMITS, 60, memory_available)
    for number in (0, 1, 2, 3, 8, 9):
        data = b'{"payloads":[%d]}' % number
        client = "192.0.2.1" if number < 8 else "192.0.2.2"
        bodies.add(LargeBody(data, 0, JSON, None, submit, refuse, client, connected))
    nursery.start_soon(bodies.run)
    with trio.fail_after(60):
        await finished.wait()
    assert order == ["0", "8", "1", "9", "2", "3"]


async def test_a_body_that_waited_too_long_is_refused(nursery: trio.Nursery) -> None:
    """Otherwise requests of clients that gave up would be stored, and again when repeated."""
    bodies = LargeBodies(LIMITS, -1, memory_available)
    nursery.start_soon(bodies.run)
    refused = await outcome_of(bodies, b'{"payloads":[1]}')
    assert isinstance(refused, RefusedError)
    assert refused.code == "BUSY"


async def test_a_body_of_a_client_that_is_gone_is_not_decoded(nursery: trio.Nursery) -> None:
    """Clients that send and leave would keep the process busy for minutes."""
    bodies = LargeBodies(LIMITS, 60, memory_available)
    outcomes: list[Outcome] = []
    finished = trio.Event()

    async def submit(lines: Lines) -> None:
        outcomes.append(lines)
        finished.set()

    for is_gone in (lambda: True, connected):
        bodies.add(LargeBody(b"1\n", 0, LINES, None, submit, outcomes.append, "192.0.2.1", is_gone))
    nursery.start_soon(bodies.run)
    with trio.fail_after(60):
        await finished.wait()
    refused, lines = outcomes
    assert isinstance(refused, RefusedError)
    assert refused.code == "BUSY"
    assert isinstance(lines, Lines)


async def test_refusals_of_large_bodies_leave_time_for_others(nursery: trio.Nursery) -> None:
    """A thousand clients that leave at once would stop the event loop for a while."""
    bodies = LargeBodies(LIMITS, 60, memory_available)
    passes = 0
    refused: list[int] = []

    async def submit(_: Lines) -> None:
        raise NotImplementedError

    for number in range(20):
        client = f"192.0.2.{number}"
        refuse = lambda _problem: refused.append(passes)  # noqa: E731
        bodies.add(LargeBody(b"1\n", 0, LINES, None, submit, refuse, client, lambda: True))
    nursery.start_soon(bodies.run)
    with trio.fail_after(60):
        while len(refused) < 20:
            await trio.lowlevel.checkpoint()
            passes += 1
    # The order of the tasks in a pass is random.
    assert max(map(refused.count, refused)) <= 2


async def test_a_client_with_many_large_bodies_is_refused_at_once(nursery: trio.Nursery) -> None:
    """Otherwise requests of 200 bytes that take long to decode would keep all connections."""
    submitted = 0
    finished = trio.Event()

    async def submit(_: Lines) -> None:
        nonlocal submitted
        submitted += 1
        if submitted == 65:
            finished.set()

    def refuse(problem: Problem | RefusedError) -> None:
        pytest.fail(str(problem))

    def add(client: str) -> None:
        bodies.add(LargeBody(b'{"payloads":[1]}', 0, JSON, None, submit, refuse, client, connected))

    bodies = LargeBodies(LIMITS, 60, memory_available)
    for _ in range(64):
        add("192.0.2.1")
    with pytest.raises(Problem, match="too many large requests"):
        add("192.0.2.1")
    add("192.0.2.2")
    nursery.start_soon(bodies.run)
    with trio.fail_after(60):
        await finished.wait()
    add("192.0.2.1")


async def test_small_requests_are_answered_while_large_ones_are_decoded() -> None:
    """Otherwise each client would wait for the largest document of another."""
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
        assert max(map(len, rig.intake.taken)) == 2
        assert rig.intake.taken.count([wide[13:-2]]) == 1
        assert len(waits) > 3
        assert max(waits) < 2.0
        # The time shows only that the event loop is not blocked for long; this shows that the
        # process decoded the body.
        assert rig.submitter is not None
        assert rig.submitter.large_bodies.process is not None


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_memory_is_released_after_every_outcome(
    coding: str, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """Otherwise each refused request would leave less memory, until all are refused."""
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


async def test_on_busy_is_called_while_a_body_is_submitted(nursery: trio.Nursery) -> None:
    """Otherwise the pipeline would wait for Python's lock while it writes a large body."""
    calls = 0
    enough = trio.Event()

    def busy() -> None:
        nonlocal calls
        calls += 1
        if calls == 100:
            enough.set()

    async def submit(_lines: Lines) -> None:
        await enough.wait()
        submitted.set()

    def refuse(problem: Problem | RefusedError) -> None:
        pytest.fail(str(problem))

    submitted = trio.Event()
    bodies = LargeBodies(LIMITS, 60, memory_available, busy)
    bodies.busy_interval = 0.01
    nursery.start_soon(bodies.run)
    bodies.add(LargeBody(b"1\n", 0, LINES, None, submit, refuse, "192.0.2.1", connected))
    with trio.fail_after(60):
        await submitted.wait()
        await outcome_of(bodies, b"2\n", LINES)
    assert calls >= 101
