"""The start of the command."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from payloadd.observe import journald
from tests.support.commands import invoke

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_only_serve_imports_the_servers() -> None:
    """``payloadd journal status`` in a script would take twice the time."""
    code = "import sys, payloadd.cli.main; print({'quart', 'hypercorn'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


async def test_check_writes_its_log_beside_its_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator would have to search the journal for the warnings of the check."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "journald"))
        monkeypatch.setattr(journald, "SOCKET", str(tmp_path / "journald"))
        env = {"LOG_FORMAT": "journald", "COMPRESION": "zstd"}
        done = await invoke("check", folder=tmp_path, env=env)
    assert "names_ignored" in done.stderr
