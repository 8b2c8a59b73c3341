"""The command line: its output and its exit status."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.lock import lock
from tests.support.commands import invoke
from tests.support.daemon import ROOT, environment, run_command, running_daemon
from tests.support.rights import bound_by_permissions
from tests.support.tools import need_tools

if TYPE_CHECKING:
    from tests.support.s3 import S3Server

WRONG = {
    "MAX_WORKERS": "none",
    "MAX_LENGTH": "1 parsec",
    "BIND": "localhost",
    "STORE_URL": "ftp://bucket",
    "DRAIN_TIMEOUT": "soon",
}


@pytest.mark.parametrize("command", ["check", "serve"])
async def test_five_wrong_settings_are_reported_together(tmp_path: Path, command: str) -> None:
    """An operator would need a restart for each wrong setting."""
    done = await run_command(command, folder=tmp_path, env=WRONG)
    assert done.returncode == 78
    for name, text in WRONG.items():
        assert name in done.stderr
        assert text in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_bad_key_template_is_a_wrong_setting(tmp_path: Path) -> None:
    """Objects would overwrite each other, or the daemon would fail at its first payload."""
    done = await invoke("check", folder=tmp_path, env={"KEY_TEMPLATE": "{date}.ndjson"})
    assert done.returncode == 78
    assert "KEY_TEMPLATE" in done.stdout + done.stderr


async def test_check_succeeds_without_settings(tmp_path: Path) -> None:
    """A new user could not verify the installation before the first payload."""
    done = await run_command("check", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2, done.stdout
    left = [path for path in (tmp_path / "payloadd-data").rglob("*") if path.is_file()]
    assert not left, "a probe was left behind"


async def test_check_works_while_the_daemon_runs(tmp_path: Path) -> None:
    """An operator could not try new settings before a restart."""
    async with running_daemon(tmp_path) as daemon:
        done = await run_command("check", folder=tmp_path)
    assert done.returncode == 0, done.stdout
    assert f"in use by process {daemon.pid}" in done.stdout


async def test_check_reports_a_state_dir_that_cannot_be_used(tmp_path: Path) -> None:
    """`check` would succeed, and the daemon would not start."""
    (tmp_path / "file").touch()
    done = await invoke("check", folder=tmp_path, env={"STATE_DIR": str(tmp_path / "file")})
    assert done.returncode == 78
    assert "failed  journal" in done.stdout
    assert "STATE_DIR" in done.stdout


@pytest.mark.no_cover
@pytest.mark.parametrize("mode", [0o000, 0o400])
@pytest.mark.parametrize("name", ["", "journal.lock", "journal.db"])
async def test_check_and_serve_agree_on_permissions(tmp_path: Path, name: str, mode: int) -> None:
    """`check` would succeed, or end in a traceback, although the daemon may not use the folder."""
    prefix = bound_by_permissions(tmp_path)
    state = tmp_path / "state"
    os.close(lock(state))
    Database(state / "journal.db").close()
    env = {"STATE_DIR": str(state)}
    good = await invoke("check", folder=tmp_path, env=env)
    assert good.returncode == 0, good.stdout

    (state / name).chmod(mode)
    check = await run_command("check", folder=tmp_path, env=env, prefix=prefix)
    serve = await run_command("serve", folder=tmp_path, env=env, prefix=prefix)
    state.chmod(0o700)
    assert (check.returncode, serve.returncode) == (78, 1)
    assert "failed  journal" in check.stdout
    assert "Permission denied" in check.stdout
    assert str(state / name) in check.stdout
    assert "Traceback" not in check.stderr + serve.stderr
    assert {path.name for path in state.iterdir()} - {"journal.high"} == {
        "journal.lock",
        "journal.db",
    }


async def test_check_finds_a_write_ahead_log_that_cannot_be_written(tmp_path: Path) -> None:
    """`check` would succeed, and the daemon would refuse every POST."""
    prefix = bound_by_permissions(tmp_path)
    os.close(lock(tmp_path / "state"))
    Database(tmp_path / "state" / "journal.db").close()
    (tmp_path / "state" / "journal.db-wal").touch(mode=0o400)
    env = {"STATE_DIR": str(tmp_path / "state")}
    done = await run_command("check", folder=tmp_path, env=env, prefix=prefix)
    assert done.returncode == 78
    assert "failed  journal" in done.stdout


async def test_check_tells_right_keys_from_wrong_ones(seaweed: S3Server, tmp_path: Path) -> None:
    """An operator would learn only from the first payload that keys are wrong."""
    bucket = await trio.to_thread.run_sync(seaweed.make_bucket, "check")
    env = {**seaweed.environ, "STORE_URL": f"s3://{bucket}"}
    good = await invoke("check", folder=tmp_path, env=env)
    assert good.returncode == 0, good.stderr
    assert not await trio.to_thread.run_sync(seaweed.keys, bucket)

    env["AWS_SECRET_ACCESS_KEY"] = "not-the-secret"
    bad = await invoke("check", folder=tmp_path, env=env)
    assert bad.returncode == 78
    assert "SignatureDoesNotMatch" in bad.stdout + bad.stderr
    assert "Traceback" not in bad.stdout + bad.stderr
    assert "not-the-secret" not in bad.stdout + bad.stderr


async def test_the_readme_tries_s3_without_an_account(tmp_path: Path) -> None:
    """The commands for a newcomer without an account would fail."""
    need_tools("curl")
    text = (ROOT / "README.md").read_text()
    block = text[text.index(".venv/bin/moto_server") :].split("```")[0]
    block = block.replace(" && .venv/bin/payloadd serve", "")
    block = block.replace(".venv/bin/payloadd", f"{sys.executable} -m payloadd")
    block = block.replace(
        ".venv/bin/moto_server", str(Path(sys.executable).with_name("moto_server"))
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = f"trap 'kill $!' EXIT\n{block.replace('5000', str(port))}"
    with trio.fail_after(60):
        done = await trio.run_process(
            ["sh", "-c", script],
            cwd=tmp_path,
            env=environment(tmp_path),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert b"ok      delete" in done.stdout


async def test_version_and_help(tmp_path: Path) -> None:
    """A new user could not find out the version and the commands."""
    version = await run_command("--version", folder=tmp_path)
    assert version.returncode == 0
    assert "0." in version.stdout
    for arguments in (["--help"], ["serve", "--help"], ["check", "--help"]):
        helped = await invoke(*arguments, folder=tmp_path)
        assert helped.returncode == 0
        assert "Usage" in helped.stdout


async def test_the_columns_of_the_settings_are_straight(tmp_path: Path) -> None:
    """The longest name would run into its default, and no name would be that of the variable."""
    text = (await invoke("serve", "--help", folder=tmp_path)).stdout
    rows = text[text.index("Settings, from") :].splitlines()[1:]
    assert len({len(re.match(r" +\S+ +\S+ +", row)[0]) for row in rows if row}) == 1  # type: ignore[index]
    assert any(row.split()[:1] == ["AWS_ENDPOINT_URL_S3"] for row in rows)


async def test_a_misspelt_setting_is_a_warning(tmp_path: Path) -> None:
    """An operator would believe that a setting is in force."""
    done = await invoke("check", folder=tmp_path, env={"COMPRESION": "zstd"})
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    (line,) = [line for line in lines if line["event"] == "names_ignored"]
    assert line["similar"] == {"COMPRESION": "COMPRESSION"}


@pytest.mark.parametrize("arguments", [["frobnicate"], ["serve", "--frobnicate"]])
async def test_wrong_usage_is_status_2(tmp_path: Path, arguments: list[str]) -> None:
    """A script could not tell a wrong command line from a failure of the daemon."""
    done = await run_command(*arguments, folder=tmp_path)
    assert done.returncode == 2
    assert "Usage" in done.stderr


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("check", {"STATE_DIR": "{}", "STORE_URL": "file://{}/objects"}),
        ("check", {"MAX_WORKERS": "{}"}),
        ("serve", {"BIND": "unix:/not/there/{}"}),
        ("serve", {"STORE_URL": "file:///proc/{}", "LOG_FORMAT": "text"}),
        ("journal status", {"STATE_DIR": "{}"}),
    ],
)
async def test_control_characters_are_not_sent_to_the_terminal(
    tmp_path: Path, command: str, settings: dict[str, str]
) -> None:
    """A value with terminal escapes or bidirectional controls would change the output."""
    controls = "\x1b\x9b\x85\u202e\u2028"
    env = {name: text.format(f"x{controls}y") for name, text in settings.items()}
    run = run_command if command == "serve" else invoke
    done = await run(*command.split(), folder=tmp_path, env=env)
    text = done.stdout + done.stderr
    assert "u202e" in text or "x1b" in text
    assert not set(text) & set(controls)
