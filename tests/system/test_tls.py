"""TLS of a running daemon: its files, and a renewed certificate."""

from __future__ import annotations

import os
import signal
import ssl
from typing import TYPE_CHECKING

import httpx
import trio
import trustme

from tests.support.daemon import run_command, running_daemon

if TYPE_CHECKING:
    from pathlib import Path


def write_certificate(folder: Path, authority: trustme.CA) -> dict[str, str]:
    """Write a certificate and its key; returns the settings with their paths."""
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    return {"TLS_CERT": str(folder / "cert.pem"), "TLS_KEY": str(folder / "key.pem")}


async def post_with_tls(url: str, authority: trustme.CA) -> int:
    """Post one payload over TLS; returns the status of the response."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with httpx.AsyncClient(verify=context, timeout=30) as client:
        secure = url.replace("http://", "https://")
        return (await client.post(f"{secure}/v1/payloads", json={"payloads": [1]})).status_code


async def test_a_certificate_is_renewed_without_a_restart(tmp_path: Path) -> None:
    """A renewed certificate would need a restart, during which clients are refused."""
    old, new = trustme.CA(), trustme.CA()
    env = await trio.to_thread.run_sync(write_certificate, tmp_path, old)
    async with running_daemon(tmp_path, env) as daemon:
        assert await post_with_tls(daemon.url, old) == 202
        await trio.to_thread.run_sync(write_certificate, tmp_path, new)
        daemon.signal(signal.SIGHUP)
        await daemon.wait_for_event("tls_reloaded")
        assert await post_with_tls(daemon.url, new) == 202
        await trio.Path(tmp_path / "key.pem").write_text("no key")
        daemon.signal(signal.SIGHUP)
        await daemon.wait_for_event("tls_not_reloaded")
        assert await post_with_tls(daemon.url, new) == 202
        daemon.signal(signal.SIGTERM)
        assert (await daemon.drained())["stored"] == 3


async def test_files_that_cannot_be_used_are_wrong_settings(tmp_path: Path) -> None:
    """The daemon would start without TLS, or fail without a reason."""
    env = {"TLS_CERT": "missing.pem", "TLS_KEY": "missing.pem"}
    done = await run_command("serve", folder=tmp_path, env=env)
    assert done.returncode == 78
    assert "TLS_CERT: 'missing.pem' cannot be read: No such file or directory" in done.stderr
    done = await run_command("check", folder=tmp_path, env=env)
    assert done.returncode == 78
    assert "failed  TLS" in done.stdout


async def test_a_hanging_file_does_not_delay_the_stop(tmp_path: Path) -> None:
    """A daemon whose network storage hangs would ignore SIGTERM."""
    env = await trio.to_thread.run_sync(write_certificate, tmp_path, trustme.CA())
    async with running_daemon(tmp_path, env) as daemon:
        (tmp_path / "key.pem").unlink()
        os.mkfifo(tmp_path / "key.pem")
        daemon.signal(signal.SIGHUP)
        await daemon.wait_for_event("reload")
        daemon.signal(signal.SIGTERM)
        assert (await daemon.drained())["lost"] == 0
