"""Return freed memory to the operating system.

glibc keeps freed memory for later allocations, hundreds of MiB after many large bodies
(mallopt(3), malloc_trim(3)). Blocks of 1 MiB and more get a mapping of their own: it is unmapped
when the block is freed, and a body that grows is moved without a copy. The rest of the heap is
trimmed in a thread when much more of it is free than after the last trim. A C library without
these functions, such as musl, is not touched.

Objects in reference cycles are freed by garbage collections, and a full collection stops the event
loop. Full collections are rare while the daemon is busy (see below), so this module runs
one when the process has grown and its CPU load is low.
"""

from __future__ import annotations

import ctypes
import gc
import time
from pathlib import Path
from resource import getpagesize
from typing import Final

import trio

_COLLECT_AFTER: Final = (5_000, 4, 250)
"""Arguments of ``gc.set_threshold``: new containers, young collections, middle collections.

A collection of the middle generation has to stay short, so the second number is small; the third
makes full collections as rare as they were before.
"""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_OWN_MAPPING_BYTES: Final = 2**20
"""Setting the threshold stops glibc from raising it up to 32 MiB after the first large block."""
_KEPT_BYTES: Final = 32 * 2**20
"""Bytes that glibc keeps at the end of the heap. Its default, 128 KiB, would request memory from
the system and return it for each body of 64 KiB."""
_WORTH_A_TRIM: Final = 24 * 2**20
"""Bytes that have to be free beyond those free after the last trim."""
_CHECK_INTERVAL: Final = 2.0
"""Seconds."""
_GROWTH: Final = 16 * 2**20
"""Bytes by which the process has to exceed its smallest size for a full collection."""
_LOW_LOAD: Final = 0.5
"""Share of one core that the process uses at most during a check interval with low load."""
_STATM: Final = Path("/proc/self/statm")


class _MallInfo(ctypes.Structure):
    """The structure that mallinfo2(3) returns."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


async def keep_small(check_interval: float = _CHECK_INTERVAL) -> None:
    """Return free memory to the system every ``check_interval`` seconds; runs until cancelled."""
    libc = ctypes.CDLL(None)
    try:
        libc.mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        heap_info, trim = libc.mallinfo2, libc.malloc_trim
    except AttributeError:
        await trio.sleep_forever()
    heap_info.restype = _MallInfo
    free_before = 0
    collector = GarbageCollector(resident_bytes(), time.process_time())
    while True:
        await trio.sleep(check_interval)
        collected = collector.collect_if_due(resident_bytes(), time.process_time())
        # mallinfo2 still counts trimmed memory as free, so a trim is due only for more than that.
        free_before = min(free_before, free := heap_info().fordblks)
        if collected or free - free_before > _WORTH_A_TRIM:
            # In a thread: ctypes releases the GIL during the call.
            await trio.to_thread.run_sync(trim, 0)
            free_before = heap_info().fordblks
        if collected:
            collector.set_smallest(resident_bytes())


class GarbageCollector:
    """Decides when a full garbage collection is due, from memory and CPU time of the process."""

    def __init__(self, resident: int, cpu_seconds: float) -> None:
        self._smallest = resident
        self._cpu_seconds = cpu_seconds

    def collect_if_due(self, resident: int, cpu_seconds: float) -> bool:
        """Collect garbage if the process has grown and its load is low; returns whether it did.

        ``resident``: resident memory in bytes; ``cpu_seconds``: CPU time since the start.
        """
        used, self._cpu_seconds = cpu_seconds - self._cpu_seconds, cpu_seconds
        self._smallest = min(self._smallest, resident)
        if resident - self._smallest < _GROWTH or used > _LOW_LOAD * _CHECK_INTERVAL:
            return False
        gc.collect()
        return True

    def set_smallest(self, resident: int) -> None:
        """Set the size after a collection: only growth beyond it makes another one due."""
        self._smallest = resident


def resident_bytes(statm: Path = _STATM) -> int:
    """Return the resident memory of the process in bytes; 0 without proc(5)."""
    try:
        return int(statm.read_bytes().split()[1]) * getpagesize()
    except OSError:
        return 0


def reduce_garbage_collections() -> None:
    """Exclude the objects of the start from garbage collections, and make collections rarer.

    Payloads have no reference cycles, so reference counting frees them. A collection visits all
    modules and all queued jobs, which costs CPU and long pauses of the event loop. The start
    leaves some 2,400 objects of 0.6 MB in cycles: they stay, because to find them takes 25 ms.
    """
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)
