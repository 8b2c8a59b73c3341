"""Remove and install payloadd again on a machine where it is installed, as in the README."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from tests.support.clients import post
from tests.system.systemd.conftest import INSTALL
from tests.system.systemd.unit import configured

if TYPE_CHECKING:
    from tests.system.systemd.machine import Machine

pytestmark = pytest.mark.no_cover

_PLACES: Final = (
    *("usr/local/lib/systemd/system", "usr/local/lib/sysusers.d", "usr/local/share"),
    "etc/payloadd",
)


def _files(machine: Machine) -> dict[str, bytes]:
    """Return the files in the folders that an installation writes to."""
    return {
        str(path.relative_to(machine.root)): path.read_bytes()
        for place in _PLACES
        for path in (machine.root / place).rglob("*")
        if path.is_file()
    }


async def test_a_removal_and_an_installation_keep_payloads_and_settings(machine: Machine) -> None:
    """An upgrade would overwrite the settings; a removal would take payloads, or leave units."""
    async with configured(machine) as unit:
        await unit.systemctl("start")
        await post(unit.url, [b"1"])
        installed = _files(machine)
        await machine.run("/opt/payloadd/bin/payloadd", "systemd", "remove")
        assert await unit.show("LoadState") == "not-found"
        assert await unit.show("ActiveState") == "inactive"
        assert set(_files(machine)) == {"etc/payloadd/payloadd.env"}
        assert (machine.root / "var/lib/payloadd/journal.db").exists()
        assert not (machine.root / "usr/local/bin/payloadd").is_symlink()
        assert not list((machine.root / "etc/systemd/system").rglob("*.wants/payloadd*"))
        await machine.run("/opt/payloadd/bin/payloadd", "systemd", "remove")  # nothing is installed
        for command in INSTALL:
            await machine.run("sh", "-c", command)
        assert _files(machine) == installed
        assert f"BIND=127.0.0.1:{unit.port}".encode() in installed["etc/payloadd/payloadd.env"]
        await unit.systemctl("start")
        await post(unit.url, [b"2"])
