"""Programs that some tests need and that pip cannot install."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

# Where Debian puts daemons; not on everybody's PATH.
_PLACES = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
_PACKAGES = {
    "nginx": "nginx-light",
    "wrk": "wrk",
    "debootstrap": "debootstrap",
    "strace": "strace",
    "systemd-nspawn": "systemd-container",
}


def missing_tools(*names: str) -> str | None:
    """Return which of the programs are missing and the line that installs them, or None."""
    missing = [name for name in names if shutil.which(name, path=_PLACES) is None]
    if not missing:
        return None
    packages = " ".join(_PACKAGES[name] for name in missing)
    return f"{', '.join(missing)} not found; on Debian: apt-get install {packages}"


def find_tool(name: str) -> str:
    """Return the path of a program that is there."""
    path = shutil.which(name, path=_PLACES)
    assert path is not None, missing_tools(name)
    return path


def need_tools(*names: str) -> None:
    """Skip the test where a program is missing; in CI that is a failure, nothing is skipped."""
    missing = missing_tools(*names)
    if missing is not None:
        give_up(missing)


def give_up(reason: str) -> NoReturn:
    """Skip the test; in CI that is a failure, nothing is skipped."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
