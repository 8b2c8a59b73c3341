"""A journal whose disk goes bad, and that is killed in the moment in which a request is refused.

A process of its own, for ``test_ghosts.py``: it prints what the request was refused with.
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
    """Take ``before`` jobs, let the disk go bad, be refused ``count`` jobs, die."""
    rig = make_rig(path)
    async with rig.journal.running():
        await rig.take(1, count=before)
        fail_syncs()
        try:
            await rig.take(before + 1, b"key", count=count)
        except RefusedError as refusal:
            print(refusal.code, refusal.detail, flush=True)  # noqa: T201 - for the test
        os.kill(os.getpid(), signal.SIGKILL)


trio.run(main, Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
