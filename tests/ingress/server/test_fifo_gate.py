"""Many tasks with work to do, and an event loop that stays responsive."""

from __future__ import annotations

import socket
from collections import Counter
from contextlib import ExitStack
from time import perf_counter, thread_time
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.ingress.server.accept import Acceptor
from payloadd.ingress.server.fifo_gate import FifoGate
from tests.ingress.rig import SOON, post, running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from quart_trio import QuartTrio

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


class Passes(trio.abc.Instrument):
    """Count the passes of the event loop."""

    def __init__(self) -> None:
        self.now = 0
        trio.lowlevel.add_instrument(self)

    def before_io_wait(self, _timeout: float) -> None:
        """Count a pass."""
        self.now += 1


def connect(port: int, stack: ExitStack) -> socket.socket:
    """Connect without a pass of the event loop: the kernel accepts the connection."""
    connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
    connection.settimeout(0)
    return connection


async def test_tasks_continue_in_the_order_in_which_they_arrived() -> None:
    """A connection would starve behind busier ones."""
    fifo_gate = FifoGate()
    order: list[int] = []

    async def work(number: int) -> None:
        await fifo_gate.wait_turn()
        order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(work, number)
            await wait_all_tasks_blocked()
        nursery.start_soon(fifo_gate.run)
        await wait_all_tasks_blocked()
        assert len(order) == 50
        # Trio runs the tasks of one pass, eight at most, in any order.
        assert all(abs(place - number) < 8 for place, number in enumerate(order))
        nursery.cancel_scope.cancel()


@pytest.mark.no_cover
@pytest.mark.usefixtures("frozen_heap")
async def test_a_thousand_bursts_do_not_block_the_event_loop() -> None:
    """A small request would wait until a thousand others are processed."""
    fifo_gate = FifoGate()
    left = 1000
    longest = 0.0

    async def work() -> None:
        nonlocal left
        await fifo_gate.wait_turn()
        end = perf_counter() + 0.001
        while perf_counter() < end:
            pass
        left -= 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fifo_gate.run)
        for _ in range(left):
            nursery.start_soon(work)
        await trio.lowlevel.checkpoint()
        passes = 0
        while left:
            before = thread_time()
            await trio.lowlevel.checkpoint()
            passes += 1
            longest = max(longest, thread_time() - before)
        nursery.cancel_scope.cancel()
    # A pass has three bursts at first, and one when their time is known.
    assert passes > 200
    assert longest < 0.25


async def test_a_cancelled_task_leaves_the_gate() -> None:
    """The gate would reschedule a task that has ended, and end the daemon."""
    fifo_gate = FifoGate()
    with trio.move_on_after(0):
        await fifo_gate.wait_turn()
    done = trio.Event()

    async def work() -> None:
        await fifo_gate.wait_turn()
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fifo_gate.run)
        nursery.start_soon(work)
        with trio.fail_after(SOON):
            await done.wait()
        nursery.cancel_scope.cancel()


async def test_few_answers_are_sent_in_one_pass() -> None:
    """The answers of a large commit would block the event loop together."""
    fifo_gate = FifoGate()
    passes = Passes()
    answered: Counter[int] = Counter()
    committed = trio.Event()

    async def answer() -> None:
        await committed.wait()
        await fifo_gate.wait_to_answer()
        answered[passes.now] += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fifo_gate.run)
        for _ in range(100):
            nursery.start_soon(answer)
        await wait_all_tasks_blocked()
        committed.set()
        with trio.fail_after(10):
            while answered.total() < 100:
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    trio.lowlevel.remove_instrument(passes)
    # Trio may run the tasks of two passes in one pass.
    assert max(answered.values()) <= 16


async def test_the_first_answers_of_a_pass_need_no_task_switch() -> None:
    """A pass of the event loop for each answer was a large part of its cost."""
    fifo_gate = FifoGate()
    passes = Passes()
    before = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fifo_gate.run)
        for _ in range(3):
            await wait_all_tasks_blocked()
            before = passes.now
            for _ in range(8):
                await fifo_gate.wait_to_answer()
            assert passes.now == before
        with trio.fail_after(10):
            await fifo_gate.wait_to_answer()
        assert passes.now > before
        nursery.cancel_scope.cancel()
    trio.lowlevel.remove_instrument(passes)


async def test_answers_pause_while_a_commit_is_awaited(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The committing thread would wait for the interpreter lock in each of its 30 steps."""
    fifo_gate = FifoGate(commit_is_awaited=lambda: True)
    assert await time_of_bursts(fifo_gate, 30, fifo_gate.wait_to_answer) >= 9 * 0.003 - 1e-6


async def test_few_requests_of_hypercorn_begin_in_one_pass() -> None:
    """Requests of many connections that arrive together would block the event loop together."""
    begun: Counter[int] = Counter()

    async def app(_scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        begun[passes.now] += 1
        await receive()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with running(cast("QuartTrio", app), max_connections=100) as rig:
        passes = Passes()
        port = rig.listeners[0].socket.getsockname()[1]
        with ExitStack() as stack:
            connections = [connect(port, stack) for _ in range(60)]
            for connection in connections:
                connection.send(GET)
            with trio.fail_after(30):
                while begun.total() < len(connections):
                    await trio.lowlevel.checkpoint()
        trio.lowlevel.remove_instrument(passes)
    # Trio may run the bursts of two passes in one pass.
    assert max(begun.values()) <= 6


async def test_many_connections_are_accepted_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one of thousands would wait for thousands of passes of the event loop."""
    accepted: Counter[int] = Counter()
    accept = Acceptor.accept_now

    def count(self: Acceptor, *, strict: bool) -> tuple[socket.socket, str | None] | None:
        found = accept(self, strict=strict)
        accepted[passes.now] += found is not None
        return found

    monkeypatch.setattr(Acceptor, "accept_now", count)
    options = {"accept_seconds": 60}  # no time limit, even on a slow machine
    async with running(max_connections=200, options=options) as rig:
        passes = Passes()
        port = rig.listeners[0].socket.getsockname()[1]
        with ExitStack() as stack:
            for _ in range(100):
                connect(port, stack)
            with trio.fail_after(30):
                while accepted.total() < 100:
                    await trio.lowlevel.checkpoint()
        trio.lowlevel.remove_instrument(passes)
    assert sorted(filter(None, accepted.values())) == [36, 64]


# --- pauses for commits ---------------------------------------------------------------------------


async def time_of_bursts(
    fifo_gate: FifoGate, bursts: int, wait: Callable[[], Awaitable[None]] | None = None
) -> float:
    """Return the time on trio's clock from the first burst to the last."""
    times: list[float] = []
    wait = wait or fifo_gate.wait_turn

    async def work() -> None:
        await wait()
        times.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for _ in range(bursts):
            nursery.start_soon(work)
        await wait_all_tasks_blocked()
        nursery.start_soon(fifo_gate.run)
        with trio.fail_after(1000):
            while len(times) < bursts:  # noqa: ASYNC110 - the clock has to move
                await trio.sleep(0.0001)
        nursery.cancel_scope.cancel()
    return times[-1] - times[0]


async def test_bursts_pause_while_a_commit_is_awaited(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The committing thread would wait for the interpreter lock in each of its 30 steps."""
    fifo_gate = FifoGate(commit_is_awaited=lambda: True)
    # A pause of 3 ms follows each pass, which has three bursts at most.
    assert await time_of_bursts(fifo_gate, 30) >= 9 * 0.003 - 1e-6


async def test_bursts_continue_when_the_commit_is_done(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Requests through Hypercorn would be slow beside a client that posts now and then."""
    answers = iter([True] + [False] * 1000)
    fifo_gate = FifoGate(commit_is_awaited=lambda: next(answers))
    assert await time_of_bursts(fifo_gate, 30) < 0.0015 + 30 * 0.0001


async def test_the_fast_path_reports_whether_a_commit_is_awaited() -> None:
    """Hypercorn would pause for ever, or never."""
    async with running() as rig, rig.wire() as wire:
        assert rig.fast_path is not None
        assert not rig.fast_path.awaits_commit()
        rig.intake.open = trio.Event()
        await wire.send(post())
        await rig.intake.asked.wait()
        await wait_all_tasks_blocked()
        assert rig.fast_path.awaits_commit()
        rig.intake.open.set()
        assert (await wire.answer()).status == 202
        assert not rig.fast_path.awaits_commit()
        await wire.send(post(b"no JSON"))
        assert (await wire.answer()).status == 400
        assert not rig.fast_path.awaits_commit()
