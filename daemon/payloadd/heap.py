"""Memory that was freed goes back to the system.

glibc keeps what is freed for the next request, and after a rush of large bodies that is hundreds
of MiB (mallopt(3), malloc_trim(3)). Blocks of a MiB and more come from the system one by one: they
go back at once, and a body that grows is moved without a copy. For the rest the heap is trimmed
when much more of it is free than at the last look, which costs 1 ms for each 10 MiB, in a thread. A
library without these functions, such as musl, is left alone.

Objects that refer to each other in a circle are freed by garbage collections, and a full one stops
the event loop for 1 ms for each 4,000 containers. They are rare while the daemon is busy (see
``service.py``), so when it has become larger, and then quiet, there is one.
"""

from __future__ import annotations

import ctypes
import gc
import time
from pathlib import Path
from resource import getpagesize
from typing import Final

import trio

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_OWN_MAPPING_BYTES: Final = 2**20
"""To be set at all keeps glibc from raising it to 32 MiB behind the first large block."""
_KEPT_BYTES: Final = 32 * 2**20
"""What glibc keeps at the end of the heap. It would be 128 KiB then: each body of 64 KiB would have
its memory fetched from the system and given back."""
_WORTH_A_TRIM: Final = 24 * 2**20
"""Free bytes in the heap."""
_BETWEEN_LOOKS: Final = 2.0
_GROWTH: Final = 16 * 2**20
"""Bytes by which the process has to be larger than at its smallest for a full collection."""
_QUIET: Final = 0.5
"""Share of one core below which the process is quiet."""
_STATM: Final = Path("/proc/self/statm")


class _MallInfo(ctypes.Structure):
    """What mallinfo2(3) returns."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


async def keep_small() -> None:
    """Give free memory back every now and then, for ever."""
    libc = ctypes.CDLL(None)
    try:
        libc.mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        look, trim = libc.mallinfo2, libc.malloc_trim
    except AttributeError:
        await trio.sleep_forever()
    look.restype = _MallInfo
    floor = 0
    garbage = Garbage(resident_bytes(), time.process_time())
    while True:
        await trio.sleep(_BETWEEN_LOOKS)
        collected = garbage.look(resident_bytes(), time.process_time())
        # What a trim gave back is still free afterwards: only more than that is news.
        floor = min(floor, free := look().fordblks)
        if collected or free - floor > _WORTH_A_TRIM:
            # In a thread, which does not hold Python's lock meanwhile.
            await trio.to_thread.run_sync(trim, 0)
            floor = look().fordblks
        if collected:
            garbage.collected(resident_bytes())


class Garbage:
    """Decides when there is a full garbage collection."""

    def __init__(self, resident: int, cpu_seconds: float) -> None:
        self._smallest = resident
        self._cpu_seconds = cpu_seconds

    def look(self, resident: int, cpu_seconds: float) -> bool:
        """Collect all garbage if it is time to; returns whether it was.

        ``resident`` is what the process has resident, in bytes, ``cpu_seconds`` what it has used.
        """
        used, self._cpu_seconds = cpu_seconds - self._cpu_seconds, cpu_seconds
        self._smallest = min(self._smallest, resident)
        if resident - self._smallest < _GROWTH or used > _QUIET * _BETWEEN_LOOKS:
            return False
        gc.collect()
        return True

    def collected(self, resident: int) -> None:
        """Take note of what is left: only growth beyond it is worth another collection."""
        self._smallest = resident


def resident_bytes() -> int:
    """Return what the process has resident; 0 where the system does not tell."""
    try:
        return int(_STATM.read_bytes().split()[1]) * getpagesize()
    except OSError:
        return 0
