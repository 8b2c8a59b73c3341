"""A journal whose disk hangs, and a daemon that stops meanwhile."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest
import trio

from payloadd.journal.sqlite.journal import Tuning
from tests.support.journal import TEST_TIMEOUT, make_rig, open_rig, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("anywhere")

_TUNING: Final = Tuning(retry_interval=0.02)


async def test_a_hanging_disk_does_not_delay_the_end(tmp_path: Path) -> None:
    """Otherwise only SIGKILL stops a daemon whose disk does not answer."""
    rig = make_rig(tmp_path / "j", tuning=replace(_TUNING, last_commit_timeout=0.1))
    with trio.fail_after(TEST_TIMEOUT):
        async with rig.journal.running(), trio.open_nursery() as nursery:
            rig.database.hold()
            nursery.start_soon(rig.accept, 1)
            await rig.database.held()
            nursery.cancel_scope.cancel()
        await rig.journal.aclose()
        assert rig.accounting.accepted == 0
        rig.database.release_gate()
        await until(lambda: bool(rig.database.commits))
    rig.database.close()


async def test_a_hanging_write_is_a_trouble(tmp_path: Path) -> None:
    """Otherwise a load balancer sends requests to a daemon that answers none."""
    tuning = replace(_TUNING, stall_timeout=0.05, stall_check_interval=0.02)
    async with open_rig(tmp_path / "j", tuning=tuning) as rig, trio.open_nursery() as nursery:
        rig.database.hold()
        nursery.start_soon(rig.accept, 1)
        await until(lambda: "journal" in rig.health.troubles)
        refusal = rig.journal.refusal()
        assert refusal is not None
        assert refusal.code == "DISK_ERROR"
        rig.database.release_gate()
        await until(lambda: not rig.health.troubles)
        assert rig.accounting.accepted == 1


async def test_a_disk_that_hangs_at_the_start_does_not_delay_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise only SIGKILL stops a daemon whose disk has never answered."""
    rig = make_rig(tmp_path / "j", tuning=replace(_TUNING, last_commit_timeout=0.1))
    reached, go_on = threading.Event(), threading.Event()

    def create() -> bool:
        reached.set()
        assert go_on.wait(TEST_TIMEOUT)
        return True

    monkeypatch.setattr(rig.database.reserve, "create", create)
    with trio.fail_after(TEST_TIMEOUT):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.journal.running().__aenter__)
            await until(reached.is_set)
            nursery.cancel_scope.cancel()
        start = trio.current_time()
        await rig.journal.aclose()
        assert trio.current_time() - start < TEST_TIMEOUT / 2
    go_on.set()
    rig.database.close()
