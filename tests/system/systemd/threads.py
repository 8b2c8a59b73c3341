"""Stop all threads of a process but the first, as a hanging disk does.

This uses ptrace(2): a signal would stop the whole process, and a fault built into the daemon would
test another program.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.system.systemd.machine import Machine

_SEIZE: Final = 0x4206
_INTERRUPT: Final = 0x4207
_DETACH: Final = 17
_ALL_KINDS: Final = 0x40000000  # __WALL

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


@asynccontextmanager
async def stopped_threads(machine: Machine, pid: int) -> AsyncIterator[None]:
    """Stop all threads but the first of the machine's process ``pid`` while the body runs."""
    threads = _other_threads(_host_pid(machine, pid))
    assert threads
    for thread in threads:
        _stop(thread)
    async with trio.open_nursery() as nursery:
        for thread in threads:
            nursery.start_soon(_reap, thread)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()
            for thread in threads:
                with suppress(OSError):  # the thread has ended, as expected
                    _ptrace(_DETACH, thread)


async def _reap(thread: int) -> None:
    """Wait for the end of a traced thread: a process ends only after all such waits."""
    # trio can only wait for child processes.
    while not _has_ended(thread):  # noqa: ASYNC110
        await trio.sleep(0.05)


def _has_ended(thread: int) -> bool:
    ended, status = os.waitpid(thread, os.WNOHANG | _ALL_KINDS)
    return ended != 0 and not os.WIFSTOPPED(status)


def _other_threads(pid: int) -> list[int]:
    threads = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
    return [thread for thread in threads if thread != pid]


def _stop(thread: int) -> None:
    _ptrace(_SEIZE, thread)
    _ptrace(_INTERRUPT, thread)
    os.waitpid(thread, _ALL_KINDS)


def _ptrace(request: int, thread: int) -> None:
    if _libc.ptrace(request, thread, None, None) == -1:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x} of {thread}")


def _host_pid(machine: Machine, pid: int) -> int:
    """Return the process id on the host of the machine's process ``pid``."""
    namespace = Path(f"/proc/{machine.leader}/ns/pid").readlink()
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            if folder.name.isdigit() and (folder / "ns/pid").readlink() == namespace:
                numbers = next(
                    line for line in (folder / "status").read_text().splitlines()
                    if line.startswith("NSpid:")
                )  # fmt: skip
                if int(numbers.split()[-1]) == pid:
                    return int(folder.name)
    message = f"the machine has no process {pid}"
    raise LookupError(message)
