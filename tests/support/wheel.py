"""payloadd's wheel, built from this checkout."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from tests.support.daemon import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def build_wheel(folder: Path) -> Path:
    """Build the wheel into ``folder`` without an index; returns its path."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)),
        ],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}{done.stderr[-4000:]}"
    (wheel,) = folder.glob("payloadd-*.whl")
    return wheel
