"""Freed memory: it goes back to the system, wherever in the heap it lies."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from payloadd import heap

ROOT = Path(__file__).parent.parent

# In a process of its own: what it sets holds for the whole process.
PROGRAM = """
import resource

import trio

from payloadd import heap

MIB = 2**20
heap._BETWEEN_LOOKS = 0.05


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


async def main() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(heap.keep_small)
        await trio.sleep(0.1)
        blocks, kept = [], []
        for _ in range(2000):
            blocks.append(bytearray(b"x" * 60_000))
            kept.append(bytearray(b"x" * 600))  # so nothing but the last block lies at the end
        full = resident()
        blocks.clear()
        with trio.fail_after(20):
            while resident() > full - 80 * MIB:
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()


trio.run(main)
"""


def test_freed_memory_goes_back_to_the_system() -> None:
    """Behind a rush of large bodies the daemon would hold hundreds of MiB for good."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


MIB = 2**20


@pytest.fixture
def collections(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Note full collections instead of making them."""
    made: list[None] = []
    monkeypatch.setattr(gc, "collect", lambda: made.append(None))
    return made


def test_garbage_is_collected_once_the_process_has_grown_and_is_quiet(
    collections: list[None],
) -> None:
    """Behind a rush of HTTP/2 requests the daemon would hold their objects for hours."""
    garbage = heap.Garbage(60 * MIB, 1.0)
    assert not garbage.look(70 * MIB, 1.1)  # it has not grown much
    assert not garbage.look(200 * MIB, 3.1)  # it has, and is busy
    assert collections == []
    assert garbage.look(200 * MIB, 3.2)
    assert len(collections) == 1
    garbage.collected(100 * MIB)
    assert not garbage.look(110 * MIB, 3.3)
    assert garbage.look(120 * MIB, 3.4)


def test_garbage_is_measured_against_the_smallest_size(collections: list[None]) -> None:
    """After one rush the next one would have to be larger to be noticed."""
    garbage = heap.Garbage(200 * MIB, 0.0)
    assert not garbage.look(100 * MIB, 0.1)
    assert garbage.look(150 * MIB, 0.2)
    assert len(collections) == 1


def test_the_process_has_a_size() -> None:
    """Garbage would never be collected."""
    assert 5 * MIB < heap.resident_bytes() < 10_000 * MIB


def test_without_proc_the_process_has_no_size(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A system without proc(5) could not run the daemon."""
    monkeypatch.setattr(heap, "_STATM", tmp_path / "none")
    assert heap.resident_bytes() == 0
