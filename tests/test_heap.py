"""Freed memory: it goes back to the system, wherever in the heap it lies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

# In a process of its own: what it sets holds for the whole process.
PROGRAM = """
import resource

import trio

from daemon import heap

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
