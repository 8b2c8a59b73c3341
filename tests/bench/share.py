"""Limit processes to a share of a core with control groups.

On a machine with few cores the generator takes CPU time from the daemons, and takes more from
faster ones. With a limit each daemon has the same CPU time, if the shares leave enough for the
generator.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# A long period: a process stopped often has cold caches, which would count as its CPU time.
_PERIOD_US: Final = 100_000
_ROOT: Final = Path("/sys/fs/cgroup")
# cgroup v1 (Documentation/scheduler/sched-bwc.rst) has a tree for each controller.
_V1: Final = _ROOT / "cpu"


class NoSharesError(Exception):
    """Control groups cannot be created; the message has the reason."""


@contextmanager
def cpu_shares(count: int, cores: float) -> Iterator[list[Path]]:
    """Make ``count`` groups of ``cores`` each; a process joins by its id in ``cgroup.procs``.

    Their processes must have ended at the end of the body. Raises NoSharesError.
    """
    groups: list[Path] = []
    try:
        try:
            names = (f"payloadd-bench-{os.getpid()}-{index}" for index in range(count))
            groups.extend(_made(name, cores) for name in names)
        except OSError as error:
            raise NoSharesError(f"no control group of the CPU: {error}") from error
        yield groups
    finally:
        for group in groups:
            group.rmdir()


def _made(name: str, cores: float) -> Path:
    first = _V1.is_dir()
    group = (_V1 if first else _ROOT) / name
    group.mkdir()
    quota = round(cores * _PERIOD_US)
    try:
        if first:
            (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (group / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
    except BaseException:
        group.rmdir()
        raise
    return group
