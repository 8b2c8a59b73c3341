"""Memory that was freed goes back to the system.

glibc keeps what is freed for the next request, and after a rush of large bodies that is hundreds
of MiB. The heap is trimmed (malloc_trim(3)) when much more of it is free than at the last look,
which costs 1 ms for each 10 MiB, in a thread. To set the thresholds of mallopt(3) instead cost
every small request a tenth of its CPU time. A library without these functions, such as musl, is
left alone.
"""

from __future__ import annotations

import ctypes
from typing import Final

import trio

_WORTH_A_TRIM: Final = 24 * 2**20
"""Free bytes in the heap."""
_BETWEEN_LOOKS: Final = 2.0


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
        look, trim = libc.mallinfo2, libc.malloc_trim
    except AttributeError:
        await trio.sleep_forever()
    look.restype = _MallInfo
    floor = 0
    while True:
        await trio.sleep(_BETWEEN_LOOKS)
        # What a trim gave back is still free afterwards: only more than that is news.
        floor = min(floor, free := look().fordblks)
        if free - floor > _WORTH_A_TRIM:
            # In a thread, which does not hold Python's lock meanwhile.
            await trio.to_thread.run_sync(trim, 0)
            floor = look().fordblks
