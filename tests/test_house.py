"""The rules of the house, held by tools: format, lint, types, who may know whom, room sizes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[1]
LONGEST_ROOM: Final = 250

_SCRIPTS: Final = Path(sys.executable).parent
_FOLDERS: Final = ["daemon", "tests"]
# All of ASYNC1xx but two: 114 wants a list of every function that is started, 127 another
# client than the one this project uses. 9xx is for libraries that promise checkpoints.
_ASYNC_RULES: Final = ["--enable=ASYNC1", "--disable=ASYNC114,ASYNC127"]


def _python_files() -> list[str]:
    """Return every Python file of ours."""
    return sorted(
        str(path.relative_to(ROOT)) for folder in _FOLDERS for path in (ROOT / folder).rglob("*.py")
    )


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["ruff", "format", "--check", *_FOLDERS], id="ruff-format"),
        pytest.param(["ruff", "check", *_FOLDERS], id="ruff-check"),
        pytest.param(["flake8-async", *_ASYNC_RULES, *_python_files()], id="flake8-async"),
        pytest.param(["mypy"], id="mypy"),
        pytest.param(["lint-imports"], id="import-linter"),
    ],
)
def test_the_tools_have_nothing_to_say(command: list[str]) -> None:
    """A reader would stumble over what a tool could have found before."""
    done = subprocess.run(
        [str(_SCRIPTS / command[0]), *command[1:]],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_rooms_are_small() -> None:
    """Somebody new could not read a room in one go."""
    lengths = {
        name: len((ROOT / name).read_text(encoding="utf-8").splitlines())
        for name in _python_files()
    }
    large = {name: length for name, length in lengths.items() if length > LONGEST_ROOM}
    assert not large, f"these rooms want a wall: {large}"
