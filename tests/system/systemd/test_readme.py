"""The commands of README.md for an operator, in a machine with systemd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests.support.clients import post
from tests.support.readme import Block, assert_same, readme_blocks
from tests.system.systemd.unit import DEADLINE, configured
from tests.system.test_readme import LOG_UNDER_SYSTEMD, RUN_UNDER_SYSTEMD

if TYPE_CHECKING:
    from tests.support.s3 import S3Server
    from tests.system.systemd.machine import Machine

pytestmark = [pytest.mark.large, pytest.mark.no_cover]

_MAN: Final = "usr/local/share/man/man1/payloadd.1"


def block(name: str) -> Block:
    """Return the console block of the README with this name."""
    (found,) = (one for one in readme_blocks("console") if one.name == name)
    return found


async def compare(machine: Machine, one: Block) -> None:
    """Run the commands of a block on the machine; their outputs are what the README shows."""
    for command, expected in one.steps():
        _, output = await machine.attempt("sh", "-c", command)
        assert_same(expected, output, f"README.md:{one.line}: $ {command}")


async def test_a_command_runs_with_the_settings_and_the_user_of_the_unit(machine: Machine) -> None:
    """An operator would check other settings, or another journal, than the daemon has."""
    async with configured(machine) as unit:
        await unit.systemctl("start")
        await compare(machine, block(RUN_UNDER_SYSTEMD))
        status, output = await machine.attempt("payloadd", "systemd", "run", "journal", "nonsense")
        assert status == 2, output
        assert "No such command" in output
        assert (machine.root / _MAN).exists()


async def test_the_log_is_found_with_the_commands_of_the_readme(
    machine: Machine, moto: S3Server
) -> None:
    """An operator at night would see an empty log."""
    env = {**moto.environ, "STORE_URL": "s3://my-bucket"}
    async with configured(machine, env) as unit:
        await machine.run("sh", "-c", "journalctl --rotate && journalctl --vacuum-time=1s")
        await unit.systemctl("start")
        await post(unit.url, [b"1"])
        with trio.fail_after(DEADLINE):
            # systemd can only be polled.
            while "NoSuchBucket" not in await unit.show("StatusText"):  # noqa: ASYNC110
                await trio.sleep(0.1)
        await machine.run("journalctl", "--sync")
        await compare(machine, block(LOG_UNDER_SYSTEMD))
