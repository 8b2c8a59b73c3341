"""The rules of the house, held by tools: format, lint, types, who may know whom, room sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[1]
LONGEST_MODULE: Final = 400

_SCRIPTS: Final = Path(sys.executable).parent
_FOLDERS: Final = ["daemon", "tests"]
# Those of ASYNC1xx that ruff lacks, but 114 (wants a list of every function that is started),
# 124 (a handler of Quart's is async whether it awaits or not), 127 (wants another client than
# this project uses) and 128 (does not see a task_status that is handed on).
_ASYNC_RULES: Final = [101, 102, 103, 104, 106, 111, 112, 113, 118, 120, 121, 122, 123]
_ENABLED: Final = "--enable=" + ",".join(f"ASYNC{number}" for number in _ASYNC_RULES)


def _python_files(*folders: str, having: str = "") -> list[str]:
    """Return every Python file below the folders that has ``having`` in it."""
    return sorted(
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if having in path.read_text(encoding="utf-8")
    )


def _environment() -> dict[str, str]:
    """Return ours without what would have coverage measure the tools."""
    return {name: text for name, text in os.environ.items() if not name.startswith("COVERAGE_")}


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["ruff", "format", "--check", *_FOLDERS], id="ruff-format"),
        pytest.param(["ruff", "check", *_FOLDERS], id="ruff-check"),
        # 2 ms a line: only where there is something to find.
        pytest.param(
            ["flake8-async", _ENABLED, *_python_files(*_FOLDERS, having="await ")],
            id="flake8-async",
        ),
        pytest.param(["mypy"], id="mypy"),
        pytest.param(["lint-imports"], id="import-linter"),
    ],
)
def test_the_tools_have_nothing_to_say(command: list[str]) -> None:
    """A reader would stumble over what a tool could have found before."""
    done = subprocess.run(
        [str(_SCRIPTS / command[0]), *command[1:]],
        cwd=ROOT,
        env=_environment(),
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_modules_are_short() -> None:
    """Somebody new could not read a room in one go."""
    lengths = {
        name: len((ROOT / name).read_text(encoding="utf-8").splitlines())
        for name in _python_files("daemon")
    }
    large = {name: length for name, length in lengths.items() if length > LONGEST_MODULE}
    assert not large, f"these rooms want a wall: {large}"
