"""Skip tests whose processes cannot install the filters of ``failing_sync.py``."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Final, Literal

import pytest

from tests.support.failing_sync import supported

_FILTERS: Final = {"fail": "fail_syncs", "ask": "ask_for_syncs"}


def need_filter(kind: Literal["fail", "ask"]) -> None:
    """Skip the test if the filter of ``fail_syncs`` or of ``ask_for_syncs`` cannot be installed."""
    if reason := _why_not(_FILTERS[kind]):
        pytest.skip(f"needs a filter of system calls (seccomp): {reason}")


@cache
def _why_not(function: str) -> str:
    """Return the reason why a process cannot call ``function``, or an empty text.

    Some kernels and containers have no seccomp, or no questions of filters; only a try can tell.
    """
    if not supported:
        return f"unknown numbers of system calls on {sys.platform} {platform.machine()}"
    code = f"from tests.support import failing_sync; failing_sync.{function}()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parents[2],
        # Coverage would write a file, with a sync that waits for ever for its answer.
        env={name: text for name, text in os.environ.items() if not name.startswith("COVERAGE_")},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return "".join(done.stderr.splitlines()[-1:])
