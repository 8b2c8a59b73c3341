"""A journal with a disk that starts to fail, killed at the moment when a request is refused.

Runs as a process for ``test_ghosts.py``, and prints the error of the refused request.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import trio

from payloadd.errors import RefusedError
from tests.support.failing_sync import fail_syncs
from tests.support.journal import make_rig


async def main(path: Path, before: int, count: int) -> None:
    """Accept ``before`` jobs, make the disk fail, get ``count`` jobs refused, and die."""
    rig = make_rig(path)
    async with rig.journal.running():
        await rig.accept(1, count=before)
        fail_syncs()
        try:
            await rig.accept(before + 1, b"key", count=count)
        except RefusedError as refusal:
            print(refusal.code, refusal.detail, flush=True)  # noqa: T201 - for the test
        os.kill(os.getpid(), signal.SIGKILL)


trio.run(main, Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
