"""Freed memory is returned to the system, wherever in the heap it lies."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from payloadd import heap

ROOT = Path(__file__).parent.parent

# Runs in its own process: mallopt(3) changes the whole process.
PROGRAM = """
import resource

import trio

from payloadd import heap

MIB = 2**20


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


async def main() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(heap.keep_small, 0.05)
        await trio.sleep(0.1)
        blocks, kept = [], []
        for _ in range(2000):
            blocks.append(bytearray(b"x" * 60_000))
            kept.append(bytearray(b"x" * 600))  # keeps the end of the heap in use
        full = resident()
        blocks.clear()
        with trio.fail_after(60):
            while resident() > full - 80 * MIB:
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()


trio.run(main)
"""


def test_freed_memory_is_returned_to_the_system() -> None:
    """After many large bodies the daemon would hold hundreds of MiB for good."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


MIB = 2**20


@pytest.fixture
def collections(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Record full collections instead of running them."""
    made: list[None] = []
    monkeypatch.setattr(gc, "collect", lambda: made.append(None))
    return made


def test_garbage_is_collected_when_the_process_has_grown_and_its_load_is_low(
    collections: list[None],
) -> None:
    """After many HTTP/2 requests the daemon would hold their objects for hours."""
    collector = heap.GarbageCollector(60 * MIB, 1.0)
    assert not collector.collect_if_due(70 * MIB, 1.1)  # little growth
    assert not collector.collect_if_due(200 * MIB, 3.1)  # growth, but a high load
    assert collections == []
    assert collector.collect_if_due(200 * MIB, 3.2)
    assert len(collections) == 1
    collector.set_smallest(100 * MIB)
    assert not collector.collect_if_due(110 * MIB, 3.3)
    assert collector.collect_if_due(120 * MIB, 3.4)


def test_garbage_is_measured_against_the_smallest_size(collections: list[None]) -> None:
    """After one peak of memory only a higher peak would be noticed."""
    collector = heap.GarbageCollector(200 * MIB, 0.0)
    assert not collector.collect_if_due(100 * MIB, 0.1)
    assert collector.collect_if_due(150 * MIB, 0.2)
    assert len(collections) == 1


def test_the_resident_size_is_read_from_proc() -> None:
    """Garbage would never be collected."""
    assert 5 * MIB < heap.resident_bytes() < 10_000 * MIB


def test_without_proc_the_size_is_0(tmp_path: Path) -> None:
    """A system without proc(5) could not run the daemon."""
    assert heap.resident_bytes(tmp_path / "none") == 0
