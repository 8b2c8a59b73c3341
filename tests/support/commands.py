"""Commands of the daemon within the process of the test: no Python has to be started for them."""

from __future__ import annotations

import os
import subprocess
from contextlib import chdir
from functools import partial
from typing import TYPE_CHECKING
from unittest.mock import patch

import trio
from click.testing import CliRunner

from payloadd.cli.main import main
from tests.support.daemon import environment
from tests.support.logging_state import restored_logging

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


async def invoke(
    *arguments: str, folder: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``payloadd ARGUMENTS`` in a thread; returns status and outputs.

    For all commands but a ``serve`` that starts. Use ``run_command`` of ``daemon.py`` where the
    process matters: its exit status, its standard streams, its rights.
    """
    environ = environment(folder, **(env or {}))
    return await trio.to_thread.run_sync(partial(_invoke, arguments, folder, environ))


def _invoke(
    arguments: Sequence[str], folder: Path, environ: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    with chdir(folder), patch.dict(os.environ, environ, clear=True), restored_logging():
        result = CliRunner().invoke(main, list(arguments), prog_name="payloadd")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)
