"""A share of a core: processes held to a part of the CPU by the kernel's control groups.

On a machine of few cores a generator takes from the daemons what it needs, and the more they
do the more that is. Held to a share each, they have the same whatever else runs, as long as
the shares leave the generator enough.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

# Long: a process that is stopped often finds its caches cold, which is counted as its CPU.
_PERIOD_US: Final = 100_000
_ROOT: Final = Path("/sys/fs/cgroup")
# cgroup v1 (Documentation/scheduler/sched-bwc.rst) has a tree for each controller.
_V1: Final = _ROOT / "cpu"


class NoSharesError(Exception):
    """Control groups cannot be made here; the message says why."""


@contextmanager
def cpu_shares(count: int, cores: float) -> Iterator[list[Path]]:
    """Make ``count`` groups of ``cores`` each; a process joins by its id in ``cgroup.procs``.

    Their processes must have ended at the end of the block. Raises NoSharesError.
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
