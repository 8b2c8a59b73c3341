"""What Linux knows of a process tree: CPU time and memory, read from proc(5)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PPID, _UTIME, _CSTIME = 1, 11, 14  # places in /proc/PID/stat after the name's bracket


def tree(root: int) -> list[int]:
    """Return the ids of ``root`` and of every living process below it."""
    parents = {pid: int(stat[_PPID]) for pid, stat in _stats().items()}
    found = [root]
    for pid in found:  # grows while it is walked
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def cpu_seconds(root: int) -> float:
    """Return the CPU time, user and system, that ``root`` and all below it have used.

    Children that have ended count from the moment their parent has waited for them.
    """
    stats = _stats()
    ticks = sum(
        sum(int(field) for field in stats[pid][_UTIME : _CSTIME + 1])
        for pid in tree(root)
        if pid in stats
    )
    return ticks / _TICKS


def peak_rss(pid: int) -> int:
    """Return the most bytes of memory that a process has had resident (VmHWM)."""
    return _status(pid, "VmHWM") * 1024


def rss(pid: int) -> int:
    """Return the bytes of memory that a process has resident now (VmRSS)."""
    return _status(pid, "VmRSS") * 1024


def threads(pid: int) -> int:
    """Return the number of a process's threads."""
    return _status(pid, "Threads")


def _status(pid: int, name: str) -> int:
    for line in (_PROC / str(pid) / "status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    message = f"/proc/{pid}/status has no {name}"
    raise LookupError(message)


def _stats() -> dict[int, list[str]]:
    """Return the fields of every process's stat file that follow its name."""
    stats = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we walked
            # A name may hold blanks and brackets: what follows starts after the last bracket.
            stats[int(folder.name)] = text.rpartition(")")[2].split()
    return stats
