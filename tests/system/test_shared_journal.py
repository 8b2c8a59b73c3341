"""The daemon as a process with a journal in PostgreSQL, and the commands that look into it."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

from tests.support.clients import post
from tests.support.daemon import run_command, running_daemon
from tests.support.databases import new_database

if TYPE_CHECKING:
    from pathlib import Path


async def test_payloads_go_through_a_shared_journal(tmp_path: Path) -> None:
    """JOURNAL_URL would be read and not used, or its commands would look into STATE_DIR."""
    environ = {
        "JOURNAL_URL": new_database(),
        "STATE_DIR": str(tmp_path / "state"),
        "STORE_URL": f"file://{tmp_path}/objects",
        "BATCH_LINGER": "50ms",
    }
    checked = await run_command("check", "--create", folder=tmp_path, env=environ)
    assert checked.returncode == 0, checked.stderr
    assert "PostgreSQL" in checked.stdout
    assert "synchronous_commit is off" in checked.stdout
    async with running_daemon(tmp_path, environ) as daemon:
        await post(daemon.url, [b"1", b"2", b"3"])
        await daemon.wait_until_stored(3)
        status = await run_command("journal", "status", "--json", folder=tmp_path, env=environ)
        assert json.loads(status.stdout)["process"] == daemon.pid
        daemon.signal(signal.SIGTERM)
        line = await daemon.drained()
        assert (line["stored"], line["journaled"], line["lost"]) == (3, 0, 0)
    assert not (tmp_path / "state").exists()
    sound = await run_command("journal", "verify", "--lane", "1", folder=tmp_path, env=environ)
    assert (sound.returncode, sound.stdout) == (0, "no damage\n")
    other = await run_command("journal", "verify", "--lane", "7", folder=tmp_path, env=environ)
    assert other.returncode == 1
    assert "has no lane 7" in other.stderr
    stored = b"".join(path.read_bytes() for path in (tmp_path / "objects").rglob("*.ndjson"))
    assert sorted(stored.split()) == [b"1", b"2", b"3"]
