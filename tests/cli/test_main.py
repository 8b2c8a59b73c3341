"""The start of the command."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from payloadd.observe import journald
from tests.support.commands import invoke
from tests.support.daemon import run_command

if TYPE_CHECKING:
    from pathlib import Path


def test_only_serve_imports_the_servers() -> None:
    """``payloadd journal status`` in a script would take twice the time."""
    code = "import sys, payloadd.cli.main; print({'quart', 'hypercorn'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_garbage_collections_do_not_slow_down_the_imports() -> None:
    """With Python's thresholds each command would make more than a hundred, for 0.6 MB."""
    code = (
        "import atexit, gc; from payloadd.__main__ import main\n"
        "count = lambda: gc.get_stats()[0]['collections']; before = count()\n"
        "atexit.register(lambda: print(count() - before)); main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--version"], check=True, capture_output=True, text=True
    )
    assert int(done.stdout.splitlines()[-1]) < 10


@pytest.mark.parametrize(
    ("env", "text"), [({"LOG_FORMAT": "json"}, False), ({}, False), ({"LOG_FORMAT": "text"}, True)]
)
async def test_wrong_settings_are_reported_in_the_format_of_the_log(
    tmp_path: Path,
    env: dict[str, str],
    text: bool,  # noqa: FBT001 - pytest passes it by name
) -> None:
    """A program that reads the log would fail at the lines that say why there is no daemon."""
    env |= {"MAX_WORKERS": "many\x1b", "COMPRESSION": "lz4"}
    done = await invoke("serve", folder=tmp_path, env=env)
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines), "\x1b" in done.stderr) == (78, 2, False)
    if text:
        assert all(line.startswith("payloadd: ") for line in lines)
        return
    found = [json.loads(line) for line in lines]
    assert {(line["level"], line["event"]) for line in found} == {("error", "settings_wrong")}
    assert [line["setting"] for line in found] == ["MAX_WORKERS", "COMPRESSION"]
    assert found[1]["problem"].startswith("COMPRESSION: 'lz4' is not allowed; allowed is one of")


@pytest.mark.parametrize("command", ["check", "journal status"])
@pytest.mark.parametrize("log_format", ["auto", "text", "journald", "json"])
async def test_wrong_settings_of_commands_are_lines_unless_json_is_wanted(
    tmp_path: Path, command: str, log_format: str
) -> None:
    """An operator would have to read JSON, or a program that reads JSON would get plain lines."""
    env = {"MAX_WORKERS": "many", "LOG_FORMAT": log_format}
    done = await invoke(*command.split(), folder=tmp_path, env=env)
    assert done.returncode == 78
    (line,) = done.stderr.splitlines()
    if log_format == "json":
        found = json.loads(line)
        assert (found["event"], found["setting"]) == ("settings_wrong", "MAX_WORKERS")
    else:
        assert line.startswith("payloadd: MAX_WORKERS: 'many' is not allowed")


@pytest.mark.parametrize(
    "env",
    [
        {"AUTH_TOKENS": "absent"},
        {
            "STORE_URL": "s3://bucket",
            "AWS_CA_BUNDLE": "absent",
            "AWS_EC2_METADATA_DISABLED": "true",
        },
    ],
)
async def test_settings_that_are_found_wrong_later_are_reported_in_the_same_way(
    tmp_path: Path, env: dict[str, str]
) -> None:
    """Half of the messages would have another format, and `systemctl status` would show none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        env = {**env, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        done = await run_command("serve", folder=tmp_path, env=env)
        receiver.setblocking(False)  # noqa: FBT003 - the standard library's signature
        status = receiver.recv(4096).decode()
    assert done.returncode == 78
    (line,) = done.stderr.splitlines()
    found = json.loads(line)
    assert found["setting"] in env
    assert status == f"STATUS=wrong settings: {found['problem']}"


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
