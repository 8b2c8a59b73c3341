"""AWS credentials that systemd passes to the daemon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests.support.clients import post
from tests.system.systemd.unit import configured

if TYPE_CHECKING:
    from tests.support.s3 import S3Server
    from tests.system.systemd.machine import Machine

pytestmark = pytest.mark.no_cover

_NAMES: Final = ("aws_access_key_id", "aws_secret_access_key")


async def test_credentials_work_and_are_not_shown(machine: Machine, seaweed: S3Server) -> None:
    """A user that may read the environment, the log, or the unit would get the key."""
    bucket = await trio.to_thread.run_sync(seaweed.make_bucket, "credentials")
    env = {name: text for name, text in seaweed.environ.items() if "KEY" not in name}
    secrets = (seaweed.access_key, seaweed.secret_key)
    # One encrypted and one plain, as in the example that is installed.
    machine.write("etc/credstore/key", f"{secrets[0]}\n", 0o600)
    machine.write("run-secret", secrets[1], 0o600)
    await machine.run("systemd-creds", "setup")
    await machine.run(
        *("systemd-creds", "encrypt", f"--name={_NAMES[1]}", "/run-secret", "/etc/secret.cred")
    )
    (machine.root / "run-secret").unlink()
    drop_in = (
        f"LoadCredential={_NAMES[0]}:/etc/credstore/key\n"
        f"LoadCredentialEncrypted={_NAMES[1]}:/etc/secret.cred\n"
    )
    env |= {"STORE_URL": f"s3://{bucket}", "LOG_LEVEL": "debug"}
    async with configured(machine, env, drop_in) as unit:
        await unit.systemctl("start")
        await post(unit.url, [b"1"])
        await unit.systemctl("stop")  # which uploads it
        assert list((await trio.to_thread.run_sync(seaweed.objects, bucket)).values()) == [b"1\n"]
        await unit.systemctl("start")
        places = {
            "environment": await machine.run("cat", f"/proc/{await unit.pid()}/environ"),
            "command line": await machine.run("cat", f"/proc/{await unit.pid()}/cmdline"),
            "log": await machine.run("journalctl", "--no-pager", "--all", "--output=json"),
            "unit": await machine.run("systemctl", "show", unit.name),
            "status": await machine.run("systemctl", "status", "--no-pager", unit.name),
        }
    assert "STORE_URL" in places["environment"]
    assert [place for place, text in places.items() if any(one in text for one in secrets)] == []
