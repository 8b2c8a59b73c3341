"""The limit of connections, the drain, random bytes, and errors of the server itself."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from payloadd.ingress.server.connection_state import ConnectionState
from tests.ingress.mangled import mangled
from tests.ingress.rig import COLLECTION, SOON, Wire, post, running

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from tests.ingress.rig import Rig

pytestmark = pytest.mark.usefixtures("each_way")

HEAD = b"POST /v1/payloads HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


# --- the limit of connections ------------------------------------------------------------------


async def test_connections_beyond_the_limit_wait() -> None:
    """A flood of connections would take all memory, or be refused instead of served later."""
    async with running(max_connections=2) as rig, rig.wire() as first, rig.wire() as second:
        gate = rig.intake.open = trio.Event()
        for wire in (first, second):
            rig.intake.asked = trio.Event()
            await wire.send(post())
            await rig.intake.asked.wait()
        async with rig.wire() as third:
            await third.send(post())
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert rig.intake.taken == []
            gate.set()
            with trio.fail_after(SOON):
                for wire in (first, second, third):
                    assert (await wire.answer()).status == 202
                    await wire.stream.aclose()


async def test_no_listener_holds_the_last_slot() -> None:
    """With two addresses and one slot, the quiet address would lock out the busy one."""
    async with running(max_connections=1, BIND="127.0.0.1:0,127.0.0.1:0") as rig:
        for listener in rig.listeners * 2:
            port = listener.socket.getsockname()[1]
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(post())
                with trio.fail_after(SOON):
                    assert (await Wire(stream).answer()).status == 202


# --- the drain ---------------------------------------------------------------------------------


async def drained_while_busy(rig: Rig, wire: Wire, rest: bytes) -> None:
    """Drain during a request; it has to be answered, and the connection closed."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.drain)
        await trio.testing.wait_all_tasks_blocked()
        assert not rig.ended.is_set()
        rig.intake.open.set()
        if rest:
            await wire.send(rest)
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (202, "close")
        assert await wire.rest() == b""
        await wire.stream.aclose()


async def test_draining_answers_requests_and_closes_idle_connections() -> None:
    """A restart would break requests, or wait for unused connections."""
    async with running() as rig, rig.wire() as idle, rig.wire() as busy, rig.wire() as half:
        await idle.send(post())
        await idle.answer()
        rig.intake.open = trio.Event()
        rig.intake.asked = trio.Event()
        await busy.send(post())
        await rig.intake.asked.wait()
        await half.send(b"POST /v1")
        await trio.testing.wait_all_tasks_blocked()
        port = rig.listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drained_while_busy, rig, busy, b"")
            assert await idle.rest() == b""
            answer = await half.answer()
            assert (answer.status, answer.headers["connection"]) == (503, "close")
            assert answer.document["code"] == "DRAINING"
            await half.stream.aclose()
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream("127.0.0.1", port)


async def test_a_request_that_arrives_with_the_drain_is_answered() -> None:
    """Every restart would break the requests of clients that keep their connections busy."""
    async with running() as rig, rig.wire() as kept, rig.wire() as fresh:
        await kept.send(post())
        await kept.answer()
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.drain)
            await trio.testing.wait_all_tasks_blocked()
            for wire in (kept, fresh):
                await wire.send(post())
                answer = await wire.answer()
                assert (answer.status, answer.headers["connection"]) == (202, "close")
                assert await wire.rest() == b""
                await wire.stream.aclose()


async def test_an_incomplete_head_during_the_drain_gets_503() -> None:
    """One slow client would delay a restart by REQUEST_TIMEOUT."""
    async with running(REQUEST_TIMEOUT="1h") as rig, rig.wire() as wire:
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.drain)
            await trio.testing.wait_all_tasks_blocked()
            await wire.send(b"POST /v1")
            assert (await wire.answer()).document["code"] == "DRAINING"
            await wire.stream.aclose()


async def test_a_body_that_arrives_during_the_drain_is_accepted() -> None:
    """A request whose head arrived before SIGTERM would be dropped."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(HEAD, b"Content-Length: 22\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        await drained_while_busy(rig, wire, COLLECTION)


async def test_a_drain_ends_despite_an_endless_body() -> None:
    """One client with an endless body would keep the daemon from ending."""
    async with running(REQUEST_TIMEOUT="300ms") as rig, rig.wire() as wire:
        await wire.send(HEAD, b"Content-Length: 22\r\n\r\n{")
        await trio.testing.wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.drain)
            assert (await wire.answer()).status == 408
            await wire.stream.aclose()


# --- random bytes ------------------------------------------------------------------------------


async def test_mangled_requests_leave_nothing_behind() -> None:
    """Unforeseen bytes would fill the log or keep a slot for ever."""
    limit = "200ms"
    async with running(max_connections=200, REQUEST_TIMEOUT=limit, KEEPALIVE_TIMEOUT=limit) as rig:

        async def visit(seed: int) -> None:
            chance = random.Random(seed)  # noqa: S311 - not for secrets
            with suppress(trio.BrokenResourceError):
                async with rig.wire() as wire:
                    await wire.send(mangled(chance))
                    with trio.move_on_after(chance.choice([0, 0.02, 5])):
                        await wire.rest()

        async with trio.open_nursery() as nursery:
            for seed in range(200):
                nursery.start_soon(visit, seed)
        await rig.drain()
        assert rig.counted(500) == 0


# --- errors of the server ----------------------------------------------------------------------


@pytest.mark.parametrize("fault", [KeyError("bug"), ExceptionGroup("", [KeyError("bug")])])
async def test_a_bug_ends_one_connection_and_is_logged(
    fault: Exception, monkeypatch: pytest.MonkeyPatch, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """A bug in one connection would end all, or would not be logged."""
    async with running() as rig:
        with monkeypatch.context() as patch:

            def crash(*_: object) -> None:
                raise fault

            patch.setattr(ConnectionState, "note_received", crash)
            async with rig.wire() as wire:
                await wire.send(b"GET")
                with suppress(trio.BrokenResourceError):
                    assert await wire.rest() == b""
        async with rig.client() as client:
            assert (await client.get("/healthz")).status_code == 200
    assert [line["event"] for line in log_lines] == ["connection_failed"]


async def test_a_hanging_handler_is_cut_off_after_the_drain(
    log_lines: list[MutableMapping[str, Any]],
) -> None:
    """A handler that hangs would keep the daemon from ending."""
    options = {"drain_margin": 0.1}
    async with running(options=options, REQUEST_TIMEOUT="100ms") as rig, rig.wire() as wire:
        rig.intake.open = trio.Event()
        await wire.send(post())
        await rig.intake.asked.wait()
        await rig.drain()
        assert await wire.rest() == b""
    assert [line["event"] for line in log_lines] == ["connections_cut_off"]
