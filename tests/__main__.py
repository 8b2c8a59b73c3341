"""The test command: ``python -m tests [OPTIONS OF PYTEST]``.

Runs everything there is (format, lint, types and imports are tests too, in
``test_tools.py``) under branch coverage, the daemons that the tests start included, and
closes with pytest's own summary line. The exit status is 0 only if all of it is well.

Most of a test's time is spent waiting for processes, so three run at once.

Options go to pytest. With one that picks tests (a path, ``-k``, ``-m``, ``--lf``) coverage
is not measured: what was left out would count as not covered.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).resolve().parents[1]
# Options that change how the tests run and not which; a longer one may carry a value.
_NOT_PICKING: Final = (
    *("-v", "-q", "-s", "-r", "--repeat-drain=", "--outage=", "--torture=", "--fuzz="),
)
_PICK_NOTHING: Final = ("--durations=", "--tb=", "--color=", "-p", "-W")


def main(options: list[str]) -> int:
    """Run pytest with ``options``; returns its exit status."""
    everything = all(option.startswith(_NOT_PICKING + _PICK_NOTHING) for option in options)
    coverage = ["--cov", "--cov-report=term-missing:skip-covered"] if everything else []
    at_once = ["--numprocesses=3", "--dist=worksteal"] if everything else []
    command = [sys.executable, "-m", "pytest", *coverage, *at_once, *options]
    return subprocess.run(command, cwd=_ROOT, env=_environment(), check=False).returncode


def _environment() -> dict[str, str]:
    """Return the caller's environment without what would change a test's outcome."""
    ours = ("AWS_", "COVERAGE_", "PYTEST_ADDOPTS", "CREDENTIALS_DIRECTORY", "STATE_DIRECTORY")
    return {name: text for name, text in os.environ.items() if not name.startswith(ours)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
