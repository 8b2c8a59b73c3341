"""The start of the command."""

from __future__ import annotations

import subprocess
import sys


def test_only_serve_imports_the_servers() -> None:
    """``payloadd journal status`` in a script would take twice the time."""
    code = "import sys, payloadd.cli.main; print({'quart', 'hypercorn'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"
