"""The test command: ``python -m tests [--all] [--stores] [OPTIONS OF PYTEST]``.

Run the tests; format, lint, types and imports are tests too, in ``test_tools.py``. The last line is
pytest's summary; the exit status is 0 only if every test passed. ``tests/README.md`` has all
options.

``--all`` adds the tests that are marked ``large``, and measures branch coverage, the daemons
included that the tests start: too few covered lines are a failure, too. Tests take a fifth longer
under coverage. ``--stores`` adds the tests against S3 servers that take long to install or start.

A test spends most of its time waiting for processes and for the disk, so six tests run at the same
time; with ``--all`` four, because large tests use all processors and much memory.

Options are passed on to pytest. With an option that selects tests (a path, ``-k``, ``-m``,
``--lf``) one test runs after the other, and coverage is not measured: code of the tests left out
would count as not covered.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

_ROOT: Final = Path(__file__).resolve().parents[1]
_NOT_SELECTING: Final = (
    *("--all", "--stores", "--repeat-drain=", "--outage=", "--torture=", "--fuzz="),
    *("-v", "-q", "-s", "-r", "--durations=", "--tb=", "--color=", "-p", "-W"),
)
"""Beginnings of options after which no test is missing."""


def main(options: list[str]) -> int:
    """Run pytest with ``options``; returns its exit status."""
    complete = all(option.startswith(_NOT_SELECTING) for option in options)
    large = "--all" in options
    coverage = ["--cov", "--cov-report=term-missing:skip-covered"] if complete and large else []
    processes = 4 if large else 6
    parallel = [f"--numprocesses={processes}", "--dist=worksteal"] if complete else []
    command = [sys.executable, "-m", "pytest", *coverage, *parallel, *options]
    return subprocess.run(command, cwd=_ROOT, env=_environment(), check=False).returncode


def _environment() -> dict[str, str]:
    """Return the caller's environment without variables that would change a test's outcome."""
    removed = (
        *("AWS_", "COVERAGE_", "PYTEST_ADDOPTS", "CREDENTIALS_DIRECTORY", "STATE_DIRECTORY"),
        # Without bytecode each worker would compile all tests and all of Hypothesis anew.
        "PYTHONDONTWRITEBYTECODE",
    )
    return {name: text for name, text in os.environ.items() if not name.startswith(removed)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
