"""The switch interval: short while the event loop is busy, and unchanged otherwise."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

import trio

from payloadd import heap
from payloadd.ingress.server.fifo_gate import FifoGate
from payloadd.ingress.switch_interval import SwitchInterval
from tests.ingress.rig import SOON

if TYPE_CHECKING:
    import pytest


async def test_the_interval_is_short_while_the_event_loop_is_busy() -> None:
    """Otherwise commits would be slow beside a busy event loop."""
    usual = sys.getswitchinterval()
    switch_interval = SwitchInterval(afterwards=1000.0, check_every=0.01)
    fifo_gate = FifoGate(switch_interval.shorten)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(switch_interval.run)
        nursery.start_soon(fifo_gate.run)
        await fifo_gate.wait_turn()
        assert sys.getswitchinterval() == usual
        for _ in range(20):
            nursery.start_soon(fifo_gate.wait_turn)
        # The tasks start in any order, so the gate may pass this one before it sees the others.
        with trio.fail_after(SOON):
            while sys.getswitchinterval() == usual:
                await fifo_gate.wait_turn()
        assert sys.getswitchinterval() == 0.001
        switch_interval.afterwards = 0.0
        with trio.fail_after(SOON):
            while sys.getswitchinterval() != usual:  # noqa: ASYNC110 - there is no event for it
                await trio.sleep(0.01)
        switch_interval.shorten()
        assert sys.getswitchinterval() == 0.001
        nursery.cancel_scope.cancel()
    assert sys.getswitchinterval() == usual


def test_the_start_does_not_change_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each request would cost more CPU time until the event loop was busy once."""
    for name in ("collect", "freeze", "set_threshold"):
        monkeypatch.setattr(gc, name, lambda *_: None)
    usual = sys.getswitchinterval()
    heap.reduce_garbage_collections()
    assert sys.getswitchinterval() == usual
