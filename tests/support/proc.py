"""CPU time, memory and threads of processes, read from proc(5)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PPID, _UTIME, _CUTIME, _CSTIME = 1, 11, 13, 14  # indices in /proc/PID/stat after the name


def tree(root: int) -> list[int]:
    """Return the ids of ``root`` and of its running descendants."""
    parents = {pid: int(stat[_PPID]) for pid, stat in _stats().items()}
    found = [root]
    for pid in found:  # grows during the loop
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def cpu_seconds(root: int) -> float:
    """Return the CPU seconds, user and system, of ``root`` and its descendants.

    A child that has ended counts once its parent has waited for it.
    """
    stats = _stats()
    ticks = sum(
        sum(int(field) for field in stats[pid][_UTIME : _CSTIME + 1])
        for pid in tree(root)
        if pid in stats
    )
    return ticks / _TICKS


def children_cpu_seconds(root: int) -> float:
    """Return the part of ``cpu_seconds`` that the descendants of ``root`` have used."""
    own = (_PROC / str(root) / "stat").read_text().rpartition(")")[2].split()
    return cpu_seconds(root) - sum(int(field) for field in own[_UTIME:_CUTIME]) / _TICKS


def peak_rss(pid: int) -> int:
    """Return the largest resident memory of a process so far, in bytes (VmHWM)."""
    return _status(pid, "VmHWM") * 1024


def rss(pid: int) -> int:
    """Return the resident memory of a process, in bytes (VmRSS)."""
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
    """Return, by process id, the fields of each stat file that follow the name."""
    stats = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue  # the process ended during the loop
            # A name may contain blanks and brackets; the fields start after the last bracket.
            stats[int(folder.name)] = text.rpartition(")")[2].split()
    return stats
