"""A file system without file locks, as NFS without its lock service."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

import pytest

from payloadd.exit_status import ExitStatus
from tests.support.daemon import END_WITHIN, PYTHONPATH, run_command, started

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.no_cover

_PATCH: Final = """
import errno, fcntl, os

def fail(*_):
    raise OSError({code}, os.strerror({code}))

fcntl.{name} = fail
"""


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
@pytest.mark.parametrize("name", ["flock", "lockf"])
async def test_a_file_system_without_locks_refuses_the_start_in_words(
    tmp_path: Path, name: str, code: int
) -> None:
    """An operator would have to find the reason in a traceback, at each restart anew."""
    (tmp_path / "sitecustomize.py").write_text(_PATCH.format(name=name, code=code))
    env = {"PYTHONPATH": f"{tmp_path}:{PYTHONPATH}"}
    done = await run_command("check", folder=tmp_path, env=env)
    assert done.returncode == ExitStatus.WRONG_SETTINGS
    assert "does not support file locks" in done.stdout
    async with started(tmp_path, env) as daemon:
        assert await daemon.wait(END_WITHIN) == ExitStatus.WRONG_SETTINGS
        assert [line["event"] for line in daemon.log] == ["cannot_start"], daemon.output.decode()
        assert daemon.other_lines == []
        reason = daemon.event("cannot_start")["reason"]
    assert "STATE_DIR" in reason
    assert "does not support file locks" in reason


async def test_check_names_a_file_system_without_locks_beside_a_journal(tmp_path: Path) -> None:
    """`payloadd check` would accept settings with which no start succeeds."""
    async with started(tmp_path) as daemon:
        await daemon.wait_for_event("listening")
        daemon.signal(15)
        await daemon.drained()
    (tmp_path / "sitecustomize.py").write_text(_PATCH.format(name="lockf", code=errno.ENOLCK))
    env = {"PYTHONPATH": f"{tmp_path}:{PYTHONPATH}"}
    done = await run_command("check", folder=tmp_path, env=env)
    assert done.returncode == ExitStatus.WRONG_SETTINGS
    assert "No locks available" in done.stdout
