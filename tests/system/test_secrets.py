"""No secret is in the log, at any level."""

from __future__ import annotations

import signal
import stat
import sys
from typing import TYPE_CHECKING

import pytest
import trio

from tests.support.clients import post
from tests.support.daemon import run_command, running_daemon

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.s3 import S3Server

pytestmark = pytest.mark.no_cover


async def test_no_secret_is_logged_without_errors(seaweed: S3Server, tmp_path: Path) -> None:
    """A user that shares a log would publish the keys of the bucket."""
    bucket = await trio.to_thread.run_sync(seaweed.make_bucket, "secrets")
    env = {**seaweed.environ, "STORE_URL": f"s3://{bucket}", "LOG_LEVEL": "debug"}
    async with running_daemon(tmp_path, env) as daemon:
        await post(daemon.url, [b'"a payload is no business of the log"'])
        await daemon.wait_until_stored(1)
        daemon.signal(signal.SIGTERM)
        assert await daemon.wait() == 0
    text = daemon.output.decode()
    assert seaweed.secret_key not in text
    assert "no business" not in text


@pytest.mark.parametrize("source", ["environment", "shared file"])
async def test_no_secret_is_logged_when_the_keys_are_wrong(
    seaweed: S3Server, tmp_path: Path, source: str
) -> None:
    """A typing error in a key would put the key into the log."""
    bucket = await trio.to_thread.run_sync(seaweed.make_bucket, "secrets")
    secret, token = "nearly-the-right-secret", "a-session-token-of-somebody"
    env = {
        **seaweed.environ,
        "STORE_URL": f"s3://{bucket}",
        "LOG_LEVEL": "debug",
        "DRAIN_TIMEOUT": "0s",
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_SESSION_TOKEN": token,
    }
    if source == "shared file":
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        lines = [f"{name.lower()} = {env.pop(name)}\n" for name in names]
        (tmp_path / ".aws").mkdir()
        (tmp_path / ".aws" / "credentials").write_text("[default]\n" + "".join(lines))
    async with running_daemon(tmp_path, env) as daemon:
        await post(daemon.url, [b"1"])
        line = await daemon.wait_for_event("store_unavailable")
        daemon.signal(signal.SIGTERM)
        assert (await daemon.drained())["journaled"] == 1
    text = daemon.output.decode()
    assert line["code"]
    assert secret not in text
    assert token not in text


PASSWORD = "QXZ789Q/QZX987X@XQZ789"
PIECES = PASSWORD.replace("@", "/").split("/")
URL = f"https://user:{PASSWORD}@127.0.0.1:1"


@pytest.mark.parametrize(
    ("command", "env", "status"),
    [
        ("check", {"STORE_URL": URL, "AWS_ENDPOINT_URL": URL, "BIND": URL}, 78),
        ("serve", {"STORE_URL": URL, "AWS_ENDPOINT_URL_S3": URL, "ADMIN_BIND": URL}, 78),
        ("check", {"STORE_URL": "s3://bucket", "HTTPS_PROXY": URL}, 78),
        ("serve", {"STORE_URL": "s3://bucket", "HTTPS_PROXY": URL}, 78),
        ("serve", {"BIND": f"unix://user:{PASSWORD}@host"}, 1),
        ("journal status", {"STORE_URL": URL}, 78),
    ],
)
async def test_a_password_in_a_url_is_shown_nowhere(
    tmp_path: Path, command: str, env: dict[str, str], status: int
) -> None:
    """A password with a slash that is not percent-encoded would be in the log."""
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": PIECES[0]}
    env = {**keys, "AWS_REGION": "eu-west-1", **env}
    done = await run_command(*command.split(), folder=tmp_path, env=env)
    assert done.returncode == status, done.stderr
    text = done.stdout + done.stderr
    assert text
    assert [piece for piece in PIECES if piece in text] == []


async def test_output_of_a_credential_process_is_not_logged(tmp_path: Path) -> None:
    """The arguments and errors of the process may contain a secret."""
    program = trio.Path(tmp_path / "vault-helper")
    script = f"import sys; print('{PIECES[0]}', file=sys.stderr); sys.exit(3)"
    await program.write_text(f"#!{sys.executable}\n{script}\n")
    await program.chmod(stat.S_IRWXU)
    profiles = trio.Path(tmp_path / "profiles")
    await profiles.write_text(f"[default]\ncredential_process = {program} {PIECES[1]}\n")
    env = {
        "STORE_URL": "s3://bucket",
        "AWS_REGION": "eu-west-1",
        "AWS_CONFIG_FILE": str(profiles),
        "LOG_LEVEL": "debug",
        "DRAIN_TIMEOUT": "0s",
    }
    done = await run_command("check", folder=tmp_path, env=env)
    assert "credential_process vault-helper ended with exit status 3" in done.stdout
    text = done.stdout + done.stderr
    async with running_daemon(tmp_path, env) as daemon:
        await post(daemon.url, [b"1"])
        line = await daemon.wait_for_event("store_unavailable")
        assert "credential_process vault-helper ended with exit status 3" in line["reason"]
        text += (await daemon.ready()).text
        daemon.signal(signal.SIGTERM)
        await daemon.drained()
    text += daemon.output.decode()
    assert [piece for piece in PIECES if piece in text] == []
