"""The switch interval: short while the event loop is busy, and left alone otherwise."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

import trio

from payloadd import service
from payloadd.ingress import switch_interval
from payloadd.ingress.server.fifo_gate import FifoGate
from payloadd.ingress.switch_interval import Switching

if TYPE_CHECKING:
    import pytest


async def test_the_interval_is_short_while_the_loop_is_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Commits would take 0.15 s beside a busy loop; or every request cost 5 % more for ever."""
    monkeypatch.setattr(switch_interval, "_AFTERWARDS", 1000.0)
    monkeypatch.setattr(switch_interval, "_LOOK_EVERY", 0.01)
    usual = sys.getswitchinterval()
    one = Switching()
    fifo_gate = FifoGate(one.busy)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        nursery.start_soon(fifo_gate.run)
        await fifo_gate.wait_turn()
        assert sys.getswitchinterval() == usual
        for _ in range(20):
            nursery.start_soon(fifo_gate.wait_turn)
        await fifo_gate.wait_turn()
        assert sys.getswitchinterval() == 0.001
        monkeypatch.setattr(switch_interval, "_AFTERWARDS", 0.0)
        with trio.fail_after(20):
            while sys.getswitchinterval() != usual:  # noqa: ASYNC110 - nothing tells of it
                await trio.sleep(0.01)
        one.busy()
        assert sys.getswitchinterval() == 0.001
        nursery.cancel_scope.cancel()
    assert sys.getswitchinterval() == usual


def test_the_start_leaves_the_interval_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request would cost 5 % more CPU time until the event loop was busy for once."""
    for name in ("collect", "freeze", "set_threshold"):
        monkeypatch.setattr(gc, name, lambda *_: None)
    usual = sys.getswitchinterval()
    service._quieten_the_collector()
    assert sys.getswitchinterval() == usual
