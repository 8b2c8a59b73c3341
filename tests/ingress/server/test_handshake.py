"""TLS handshakes without tasks: slow ones, many at once, tickets."""

from __future__ import annotations

import ssl
from contextlib import AsyncExitStack, suppress
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.ingress.server import handshake
from payloadd.ingress.server.handshake import Handshake, HandshakeQueue
from tests.ingress.rig import SOON, post

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.ingress.rig import Rig
    from tests.ingress.tls_files import Files


def _tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"])
async def test_a_slow_handshake_has_no_task(files: Files, sent: bytes) -> None:
    """A thousand clients that begin a handshake would take the memory of a thousand tasks."""
    async with files.running() as rig, AsyncExitStack() as stack:
        await wait_all_tasks_blocked()
        before = _tasks()
        for _ in range(20):
            wire = await stack.enter_async_context(rig.wire())
            await wire.send(sent)
        await wait_all_tasks_blocked(0.05)
        assert _tasks() == before


async def test_steps_are_made_a_few_between_two_passes(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    """A thousand handshakes at once would delay every request by a second."""
    monkeypatch.setattr(handshake, "_PASS_SECONDS", 0.0)
    queue = HandshakeQueue()
    made: list[int] = []
    queue.add(lambda: made.append(0))
    assert made == [0]  # a single one is made at once
    monkeypatch.setattr(queue, "_next_at_once", perf_counter() + 3600)
    for number in range(1, 4):
        queue.add(lambda number=number: made.append(number))  # type: ignore[misc]
    assert made == [0]
    nursery.start_soon(queue.run)
    seen = []
    while len(made) < 4:
        await trio.lowlevel.checkpoint()
        seen.append(len(made))
    assert made == [0, 1, 2, 3]
    assert {2, 3} <= set(seen)


async def test_the_end_of_a_handshake_passes_the_beginnings_of_others(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    """A client would wait twice behind all clients that begin a handshake and end none."""
    queue = HandshakeQueue()
    monkeypatch.setattr(queue, "_next_at_once", perf_counter() + 3600)
    made: list[str] = []
    for number in range(4):
        queue.add(lambda number=number: made.append(f"begin {number}"))  # type: ignore[misc]
    for number in range(2):
        queue.add_reply(lambda number=number: made.append(f"end {number}"))  # type: ignore[misc]
    nursery.start_soon(queue.run)
    with trio.fail_after(10):
        while len(made) < 6:
            await trio.lowlevel.checkpoint()
    assert made == ["end 0", "begin 0", "end 1", "begin 1", "begin 2", "begin 3"]


async def test_a_client_that_has_the_part_of_the_server_is_near_the_end(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above: the queue has to know which clients these are."""
    added: list[str] = []

    def record(name: str) -> None:
        def add(_queue: HandshakeQueue, step: Callable[[], object]) -> None:
            added.append(name)
            step()

        monkeypatch.setattr(HandshakeQueue, name, add)

    record("add")
    record("add_reply")
    async with files.running() as rig:
        await _ticket(files, rig, files.client_context())
    assert added == ["add", "add_reply"]


async def test_input_beyond_the_step_that_waits_stays_in_the_socket(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client could send without end while its handshake waits for its turn."""
    steps: list[Any] = []
    monkeypatch.setattr(HandshakeQueue, "add", lambda _, step: steps.append(step))
    async with files.running() as rig, rig.wire() as wire:
        with trio.move_on_after(0.5):
            while True:
                await wire.send(b"\x16\x03\x01\x40\x00" + bytes(16_384))
        assert len(steps) == 1
        with suppress(trio.BrokenResourceError):
            await wire.stream.aclose()
        steps[0]()


def watched(monkeypatch: pytest.MonkeyPatch) -> list[Handshake]:
    """Return a list to which each handshake is added that waits for input from now on."""
    made: list[Handshake] = []
    watch = Handshake.watch

    def note(self: Handshake) -> None:
        made.append(self)
        watch(self)

    monkeypatch.setattr(Handshake, "watch", note)
    return made


async def test_nothing_of_a_complete_handshake_applies_to_requests(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle connections would end after REQUEST_TIMEOUT, and be evicted like stalled handshakes."""
    made = watched(monkeypatch)
    running = files.running(REQUEST_TIMEOUT="5s", KEEPALIVE_TIMEOUT="1000s")
    async with running as rig, files.records(rig) as client:
        await client.handshake()
        await client.send()
        await wait_all_tasks_blocked(0.05)
        state = made[0]._stream.state
        assert (state.handshaking, state.count_received) == (False, None)
        assert state.deadline > trio.current_time() + 900


async def test_a_handshake_that_got_more_input_before_its_turn_goes_on(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client whose hello has two segments would get no answer while many handshakes wait."""
    steps: list[Any] = []
    monkeypatch.setattr(HandshakeQueue, "add", lambda _, step: steps.append(step))
    outgoing = ssl.MemoryBIO()
    context = files.client_context()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1").do_handshake()
    hello = outgoing.read()
    async with files.running() as rig, rig.wire() as wire:
        for part in (hello[:50], hello[50:]):
            await wire.send(part)
            await wait_all_tasks_blocked(0.05)
        for number in range(2):
            assert len(steps) == number + 1
            steps[number]()
            await wait_all_tasks_blocked(0.05)
        with trio.fail_after(SOON):
            assert (await wire.stream.receive_some(5))[:1] == b"\x16"


async def test_a_late_call_takes_no_input_from_the_request(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing would report that input again, and the request would never be answered.

    The event loop may call a handshake after it, if the socket had input in the same pass.
    """
    made = watched(monkeypatch)
    async with files.running() as rig, files.records(rig) as client:
        await client.handshake()
        await client.send()
        await wait_all_tasks_blocked(0.05)
        client.write(post())
        client.send_now()
        made[0].on_readable()
        with trio.fail_after(SOON):
            assert (await client.answer()).startswith(b"HTTP/1.1 202")


async def _ticket(files: Files, rig: Rig, context: ssl.SSLContext, old: Any = None) -> Any:  # noqa: ANN401 - ssl.SSLSession
    """Post on a new connection; return its session, and check that ``old`` was resumed."""
    port = rig.listeners[0].socket.getsockname()[1]
    tcp = await trio.open_tcp_stream("127.0.0.1", port)
    stream = trio.SSLStream(tcp, context, server_hostname="127.0.0.1", https_compatible=True)
    tls = cast("Any", stream)._ssl_object
    if old is not None:
        tls.session = old
    async with stream:
        await stream.send_all(post())
        assert b" 202 " in bytes(await stream.receive_some())
        assert tls.session_reused is (old is not None)
        return tls.session


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_client_resumes_its_session(files: Files, version: ssl.TLSVersion) -> None:
    """A client that reconnects for each request would cost a signature each time."""
    context = files.client_context()
    context.minimum_version = context.maximum_version = version
    async with files.running() as rig:
        session = await _ticket(files, rig, context)
        assert session.has_ticket
        await _ticket(files, rig, context, session)
        assert len(rig.intake.taken) == 2
