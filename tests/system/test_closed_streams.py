"""The reader of the daemon's output goes away, or the daemon has no output at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Final

import httpx
import pytest

from payloadd.exit_status import ExitStatus
from tests.support.daemon import END_WITHIN, environment
from tests.support.loopback import free_port

pytestmark = pytest.mark.no_cover

_COMMAND: Final = [sys.executable, "-m", "payloadd"]
_CLOSED: Final = 'exec "$0" "$@" 0<&- 1>&- 2>&-'


def _post(address: str) -> int:
    body = b'{"payloads":[1]}'
    headers = {"Content-Type": "application/json"}
    with httpx.Client(trust_env=False, timeout=END_WITHIN) as client:
        answer = client.post(f"http://{address}/v1/payloads", content=body, headers=headers)
        return answer.status_code


def _environment(folder: Path, durability: str, **settings: str) -> dict[str, str]:
    """Return the environment of a daemon that can store nothing."""
    return environment(
        folder,
        DURABILITY=durability,
        STORE_URL="s3://bucket",
        AWS_ENDPOINT_URL="http://127.0.0.1:9",
        AWS_REGION="us-east-1",
        AWS_ACCESS_KEY_ID="id",
        AWS_SECRET_ACCESS_KEY="secret",
        DRAIN_TIMEOUT="100ms",
        LOG_LEVEL="debug",
        **settings,
    )


@pytest.mark.parametrize(
    ("durability", "expected"), [("disk", ExitStatus.DRAINED), ("memory", ExitStatus.LOST)]
)
def test_a_log_without_a_reader_changes_neither_exit_status_nor_drain(
    tmp_path: Path, durability: str, expected: ExitStatus
) -> None:
    """Systemd would restart a daemon that was stopped, and 75 would not be seen."""
    reader, writer = os.pipe()
    with subprocess.Popen(
        [*_COMMAND, "serve"],
        stdout=writer,
        stderr=writer,
        cwd=tmp_path,
        env=_environment(tmp_path, durability),
    ) as process:
        try:
            os.close(writer)
            with closing(os.fdopen(reader, "rb")) as log:
                lines = map(json.loads, log)
                address = next(one["public"][0] for one in lines if one["event"] == "listening")
                assert _post(address) == 202
            # Log lines are written meanwhile: each attempt to upload fails.
            assert _post(address) == 202
            process.send_signal(signal.SIGTERM)
            assert process.wait(END_WITHIN) == expected
        finally:
            process.kill()


def test_a_daemon_without_standard_streams_writes_into_no_other_file(tmp_path: Path) -> None:
    """A traceback would be written into the file that got the number of standard error."""
    port = free_port()
    env = _environment(tmp_path, "disk", BIND=f"127.0.0.1:{port}")
    with subprocess.Popen(
        ["/bin/sh", "-c", _CLOSED, *_COMMAND, "serve"], cwd=tmp_path, env=env
    ) as process:
        try:
            with httpx.Client(trust_env=False, transport=httpx.HTTPTransport(retries=8)) as client:
                body = b'{"payloads":[1]}'
                headers = {"Content-Type": "application/json"}
                url = f"http://127.0.0.1:{port}/v1/payloads"
                assert client.post(url, content=body, headers=headers).status_code == 202
            for number in (0, 1, 2):
                assert Path(f"/proc/{process.pid}/fd/{number}").readlink() == Path(os.devnull)
            process.send_signal(signal.SIGTERM)
            assert process.wait(END_WITHIN) == ExitStatus.DRAINED
        finally:
            process.kill()


@pytest.mark.parametrize("closed", [False, True], ids=["no-reader", "closed"])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, ExitStatus.DRAINED), ({"MAX_WORKERS": "none"}, ExitStatus.WRONG_SETTINGS)],
)
def test_check_keeps_its_exit_status_without_a_reader(
    tmp_path: Path, settings: dict[str, str], expected: ExitStatus, *, closed: bool
) -> None:
    """A script that pipes the output into `head` would get another result."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [*_COMMAND, "check"]
    if closed:
        command = ["/bin/sh", "-c", _CLOSED, *command]
    env = environment(tmp_path, **settings)
    try:
        done = subprocess.run(
            command,
            stdout=writer,
            stderr=writer,
            cwd=tmp_path,
            env=env,
            check=False,
            timeout=END_WITHIN,
        )
    finally:
        os.close(writer)
    assert done.returncode == expected
