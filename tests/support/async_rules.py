"""Check files with the rules of flake8-async: ``python -m tests.support.async_rules CODES FILES``.

The command ``flake8-async`` reads each file into a syntax tree of libcst, which takes most of its
time. Only ASYNC101 and comments with ``noqa`` need that tree. So this program reads it only for
files with a ``yield`` that ASYNC101 has to judge, or in which another rule found something.
"""

from __future__ import annotations

import ast
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flake8_async import Plugin
from flake8_async.runner import Flake8AsyncRunner

if TYPE_CHECKING:
    from collections.abc import Sequence

_SCOPES: Final = ("nursery", "scope", "move_on", "fail_a", "TaskGroup", "timeout")
"""Parts of the names of context managers in which ASYNC101 forbids a ``yield``."""


def find_problems(codes: str, files: Sequence[str]) -> list[str]:
    """Return a line for each problem that the rules ``codes`` find in the files."""
    parser = ArgumentParser()
    Plugin.add_options(parser)
    options = parser.parse_args([f"--enable={codes}"])
    Plugin.parse_options(options)
    return [f"{file}:{problem}" for file in files for problem in _check(Path(file))]


def _check(file: Path) -> list[str]:
    source = file.read_text(encoding="utf-8")
    tree = ast.parse(source)
    options = Plugin.__new__(Plugin).options
    if not _yields_in_scope(tree) and not list(Flake8AsyncRunner.run(tree, options)):
        return []
    return [str(problem) for problem in sorted(Plugin.from_source(source, file).run())]


def _yields_in_scope(tree: ast.AST) -> bool:
    """Return whether there may be a ``yield`` in the block of a nursery or a cancel scope."""
    return any(
        isinstance(node, ast.With | ast.AsyncWith)
        and any(isinstance(inner, ast.Yield) for inner in ast.walk(node))
        and any(name in ast.unparse(item) for item in node.items for name in _SCOPES)
        for node in ast.walk(tree)
    )


if __name__ == "__main__":
    found = find_problems(sys.argv[1], sys.argv[2:])
    sys.stdout.writelines(f"{line}\n" for line in found)
    sys.exit(1 if found else 0)
