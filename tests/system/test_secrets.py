"""Secrets stay where they are, however much is logged."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
import trio

from tests.support.clients import post
from tests.support.daemon import running_daemon

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.s3 import S3Server


async def test_no_secret_is_logged_when_all_is_well(seaweed: S3Server, tmp_path: Path) -> None:
    """A log that somebody shares would give the bucket away."""
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
    """A mistake in the keys would put them, nearly right, into the log."""
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
        told = await daemon.wait_for_event("store_unavailable")
        daemon.signal(signal.SIGTERM)
        assert (await daemon.drained())["journaled"] == 1
    text = daemon.output.decode()
    assert told["code"]
    assert secret not in text
    assert token not in text
