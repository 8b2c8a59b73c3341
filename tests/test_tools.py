"""Tools check the style: format, lint, types, imports between packages, length of modules."""

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
# The rules ASYNC1xx that ruff lacks, without 114 (needs a list of all functions that are started),
# 124 (handlers of Quart are async even if they await nothing), 127 (requires another HTTP client)
# and 128 (does not see that a task_status is passed on).
_ASYNC_RULES: Final = [101, 102, 103, 104, 106, 111, 112, 113, 118, 120, 121, 122, 123]
_ENABLED: Final = ",".join(f"ASYNC{number}" for number in _ASYNC_RULES)


def _python_files(*folders: str, having: str = "") -> list[str]:
    """Return the Python files below the folders whose text contains ``having``."""
    return sorted(
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if having in path.read_text(encoding="utf-8")
    )


def _async_rules(folder: str) -> list[str]:
    """Return the command that checks a folder: slow, so only files in which it can find some."""
    command = ["python", "-m", "tests.support.async_rules", _ENABLED]
    return [*command, *_python_files(folder, having="await ")]


def _environment() -> dict[str, str]:
    """Return the environment without variables that make coverage measure the tools."""
    return {name: text for name, text in os.environ.items() if not name.startswith("COVERAGE_")}


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["ruff", "format", "--check", *_FOLDERS], id="ruff-format"),
        pytest.param(["ruff", "check", *_FOLDERS], id="ruff-check"),
        pytest.param(_async_rules("daemon"), id="flake8-async"),
        pytest.param(_async_rules("tests"), id="flake8-async-tests", marks=pytest.mark.large),
        pytest.param(["mypy"], id="mypy"),
        pytest.param(["lint-imports"], id="import-linter"),
    ],
)
def test_a_tool_finds_nothing(command: list[str]) -> None:
    """A reviewer would have to find what a tool finds."""
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


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("    await trio.sleep(1)\n", None),
        ("    async with trio.open_nursery():\n        yield 1\n", "ASYNC101"),
        ("    async with trio.open_nursery():\n        yield 1  # noqa: ASYNC101\n", None),
        ("    try:\n        pass\n    finally:\n        await trio.sleep(1)\n", "ASYNC102"),
        ("    try:\n        pass\n    except trio.Cancelled:\n        pass\n", "ASYNC103"),
    ],
)
def test_a_breach_of_an_async_rule_is_found(tmp_path: Path, source: str, code: str | None) -> None:
    """Files are checked in part where that is enough: a breach could pass."""
    # Imported here: the import takes 0.3 s, and all processes of the run collect this module.
    from tests.support.async_rules import find_problems  # noqa: PLC0415

    file = tmp_path / "breach.py"
    file.write_text(f"import trio\n\n\nasync def breach():\n{source}")
    found = find_problems(_ENABLED, [str(file)])
    assert [code] == [line.split()[1] for line in found] if code else not found


def test_modules_have_at_most_400_lines() -> None:
    """A module with several ideas is hard to understand."""
    lengths = {
        name: len((ROOT / name).read_text(encoding="utf-8").splitlines())
        for name in _python_files(*_FOLDERS)
    }
    large = {name: length for name, length in lengths.items() if length > LONGEST_MODULE}
    assert not large, f"split these modules: {large}"
