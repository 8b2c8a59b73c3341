"""File permissions that count, also where the tests run as root."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from pathlib import Path

# Still root, so that the folders of the tests are its own; but what they forbid is forbidden.
_SETPRIV: Final = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


def bound_by_permissions(folder: Path) -> tuple[str, ...]:
    """Return what to put before a command so that permissions hold for it.

    The test is skipped where that cannot be had (capabilities(7), CAP_SETPCAP).
    """
    if os.geteuid() != 0:
        return ()
    closed = folder / "closed"
    closed.touch(mode=0)
    try:
        done = subprocess.run([*_SETPRIV, "cat", str(closed)], check=False, capture_output=True)
    except FileNotFoundError:
        pytest.skip("as root this takes setpriv (Debian: apt-get install util-linux)")
    finally:
        closed.unlink()
    if b"Permission denied" not in done.stderr:
        pytest.skip(f"root's rights cannot be dropped here: {done.stderr.decode()}")
    return _SETPRIV
