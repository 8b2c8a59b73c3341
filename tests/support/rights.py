"""Run commands that file permissions bind, even if the tests run as root."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from pathlib import Path

# Root without the capabilities that override permissions: it still owns the folders of the tests.
_SETPRIV: Final = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


def bound_by_permissions(folder: Path) -> tuple[str, ...]:
    """Return a prefix for a command that makes file permissions apply to it.

    Skips the test if capabilities cannot be dropped (capabilities(7), CAP_SETPCAP).
    """
    if os.geteuid() != 0:
        return ()
    closed = folder / "closed"
    closed.touch(mode=0)
    try:
        done = subprocess.run([*_SETPRIV, "cat", str(closed)], check=False, capture_output=True)
    except FileNotFoundError:
        pytest.skip("as root this test needs setpriv (Debian: apt-get install util-linux)")
    finally:
        closed.unlink()
    if b"Permission denied" not in done.stderr:
        pytest.skip(f"root's rights cannot be dropped here: {done.stderr.decode()}")
    return _SETPRIV
