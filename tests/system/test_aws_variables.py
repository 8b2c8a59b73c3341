"""AWS's variables and a running daemon: rotated keys, processes that print keys, PEM documents."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

import pytest
import trio
import trustme

from tests.support.commands import invoke
from tests.support.daemon import run_command, running_daemon
from tests.support.faults import Answer, Request, fault_server
from tests.support.loopback import http_client
from tests.system.test_tls import post_with_tls

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.no_cover

STORED = Answer(200, headers={"etag": '"0"'})
DENIED = Answer(403, b"<Error><Code>InvalidAccessKeyId</Code></Error>")


def only(access_key: str) -> Callable[[Request], Answer]:
    """Return a server's script that knows one access key."""

    def script(request: Request) -> Answer:
        known = f"Credential={access_key}/" in request.headers["authorization"]
        return STORED if known else DENIED

    return script


async def write_keys(file: trio.Path, access_key: str) -> None:
    """Replace the shared credentials file."""
    await file.write_text(
        f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = s\n"
    )


async def post(url: str) -> None:
    """Post one payload."""
    async with http_client() as client:
        response = await client.post(f"{url}/v1/payloads", json={"payloads": [1]})
    assert response.status_code == 202


@pytest.mark.parametrize("how", ["refused", "SIGHUP"])
async def test_rotated_keys_are_used_without_a_restart(tmp_path: Path, how: str) -> None:
    """Every daemon would have to be restarted when keys are rotated."""
    file = trio.Path(tmp_path / "credentials")
    await write_keys(file, "OLD")
    async with fault_server(only("OLD")) as server:
        env = {
            "STORE_URL": "s3://bucket",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": server.url,
            "AWS_SHARED_CREDENTIALS_FILE": str(file),
        }
        async with running_daemon(tmp_path, env) as daemon:
            await post(daemon.url)
            await daemon.wait_until_stored(1)
            await write_keys(file, "NEW")
            if how == "SIGHUP":
                daemon.signal(signal.SIGHUP)
                assert (await daemon.wait_for_event("keys_reloaded"))["changed"] is True
            server.script = only("NEW")
            await post(daemon.url)
            await daemon.wait_until_stored(2)
            daemon.signal(signal.SIGTERM)
            assert (await daemon.drained())["stored"] == 2

    if how == "SIGHUP":
        assert len(server.requests) == 2, "no request had the old keys"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_process_that_prints_keys_does_not_outlive_the_daemon(
    tmp_path: Path, number: signal.Signals
) -> None:
    """Each restart of a service would leave a process that waits for a password."""
    program = tmp_path / "helper"
    program.write_text(
        f"#!{sys.executable}\nimport os, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        "with open('new', 'w') as file: file.write(f'{os.getpid()} {child.pid}')\n"
        "os.rename('new', 'pids')\ntime.sleep(1000)\n"
    )
    program.chmod(0o700)
    config = trio.Path(tmp_path / "config")
    await config.write_text(f"[default]\nregion = us-east-1\ncredential_process = {program}\n")
    env = {
        "STORE_URL": "s3://bucket",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9",
        "AWS_CONFIG_FILE": str(config),
        "DRAIN_TIMEOUT": "1s",
    }
    async with running_daemon(tmp_path, env) as daemon:
        await post(daemon.url)
        with trio.fail_after(60):
            while not await trio.Path(tmp_path / "pids").exists():  # noqa: ASYNC110 - of a process
                await trio.sleep(0.05)
        daemon.signal(number)
        status = await daemon.wait()
        assert status == (0 if number == signal.SIGTERM else -signal.SIGKILL)

    for pid in (await trio.Path(tmp_path / "pids").read_text()).split():
        with trio.fail_after(60):
            while await is_running(pid):  # noqa: ASYNC110 - a process of the daemon
                await trio.sleep(0.05)


async def is_running(pid: str) -> bool:
    """Return whether a process exists and has not ended."""
    try:
        stat = await trio.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


@pytest.mark.parametrize("command", ["serve", "check"])
@pytest.mark.parametrize(
    ("names", "profile", "reason"),
    [
        ({"STORE_URL": "s3://x--usw2-az1--x-s3"}, "", "S3 Express"),
        (
            {"STORE_URL": "s3://arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap"},
            "",
            "multi-Region access points",
        ),
        ({"AWS_USE_FIPS_ENDPOINT": "yes"}, "", "AWS_USE_FIPS_ENDPOINT: 'yes' is not allowed"),
        (
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            "role_arn = a\nsource_profile = default\nmfa_serial = b\n",
            "cannot enter the code of an MFA device",
        ),
    ],
)
async def test_what_cannot_be_served_is_a_wrong_setting(
    tmp_path: Path, command: str, names: dict[str, str], profile: str, reason: str
) -> None:
    """The daemon would start, accept payloads, and store none."""
    await trio.Path(tmp_path / "config").write_text(f"[default]\n{profile}")
    env = {
        "STORE_URL": "s3://bucket",
        "AWS_REGION": "us-west-2",
        "AWS_ACCESS_KEY_ID": "k",
        "AWS_SECRET_ACCESS_KEY": "s",
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        **names,
    }
    run = invoke if command == "check" else run_command
    done = await run(command, folder=tmp_path, env=env)

    assert done.returncode == 78
    assert reason in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("where", ["variable", "credential"])
async def test_tls_works_with_pem_documents_in_place_of_paths(tmp_path: Path, where: str) -> None:
    """A unit with LoadCredential=tls_key:/path could not serve TLS."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    documents = {
        "TLS_CERT": certificate.cert_chain_pems[0].bytes().decode(),
        "TLS_KEY": certificate.private_key_pem.bytes().decode(),
    }
    env = documents
    if where == "credential":
        folder = trio.Path(tmp_path / "credentials")
        await folder.mkdir()
        for name, text in documents.items():
            await (folder / name.lower()).write_text(text)
        await (folder / "other").write_bytes(b"\xff")
        env = {"CREDENTIALS_DIRECTORY": str(folder)}
    async with running_daemon(tmp_path, env) as daemon:
        assert await post_with_tls(daemon.url, authority) == 202
        daemon.signal(signal.SIGHUP)
        await daemon.wait_for_event("tls_reloaded")
        assert await post_with_tls(daemon.url, authority) == 202
