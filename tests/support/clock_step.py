"""Daemons whose clock is wrong by some seconds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.support.daemon import PYTHONPATH

if TYPE_CHECKING:
    from pathlib import Path

_SITE = """
import os, time
_time, _time_ns, _step = time.time, time.time_ns, int(os.environ["CLOCK_STEP"])
time.time = lambda: _time() + _step
time.time_ns = lambda: _time_ns() + _step * 10**9
"""


def clock_step(folder: Path, seconds: int) -> dict[str, str]:
    """Return the environment of a daemon whose clock is ahead by ``seconds``.

    Python imports the module ``sitecustomize``, which ``folder`` gets, at its start.
    """
    (folder / "clock").mkdir(exist_ok=True)
    (folder / "clock" / "sitecustomize.py").write_text(_SITE)
    return {
        "PYTHONPATH": os.pathsep.join([str(folder / "clock"), PYTHONPATH]),
        "CLOCK_STEP": str(seconds),
    }
