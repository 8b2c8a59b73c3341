"""Say which build runs: the version, the commit and the Python.

A wheel has the commit in ``commit.txt``, which its build wrote (``.ci/build_hook.py``). In a
checkout git says it.
"""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Final

from payloadd import __version__

_PACKAGE: Final = Path(__file__).parent
_GIT_SECONDS: Final = 5.0


def recorded_commit(package: Path = _PACKAGE) -> str | None:
    """Return the commit that the build of this package recorded, or None, as in a checkout.

    It ends with ``-modified`` if files differed from the commit.
    """
    try:
        return (package / "commit.txt").read_text(encoding="ascii").strip() or None
    except (OSError, ValueError):
        return None


def commit(package: Path = _PACKAGE) -> str | None:
    """Return the recorded commit, that of the checkout, or None if neither is known.

    In a checkout it runs git, which takes some milliseconds.
    """
    return recorded_commit(package) or _commit_of_checkout(package.parents[1])


def version_text() -> str:
    """Return one line: version, commit, and version of Python."""
    known = commit()
    built = f"commit {known}" if known else "commit not known"
    return f"payloadd {__version__} ({built}, Python {platform.python_version()})"


def _commit_of_checkout(root: Path) -> str | None:
    # An installed package may be in a folder of another repository.
    if not (root / ".git").exists() or not (root / "pyproject.toml").exists():
        return None
    command = (
        *("git", "-C", str(root), "describe", "--always", "--exclude=*", "--abbrev=12"),
        "--dirty=-modified",
    )
    try:
        done = subprocess.run(  # noqa: S603 - no part of the command is input
            command, capture_output=True, text=True, check=True, timeout=_GIT_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
