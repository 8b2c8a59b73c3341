"""The Debian package: built from the checkout, installed, started, and removed on a machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from tests.support.daemon import ROOT
from tests.support.tools import need_tools
from tests.system.systemd.machine import booted
from tests.system.systemd.tree import tree
from tests.system.systemd.unit import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.system.systemd.machine import Machine

pytestmark = [pytest.mark.large, pytest.mark.no_cover]

_BUILD_SECONDS = 900
_PYTHON = ("python3", "-c", "import sys; print(sys.version_info[:2])")


@pytest.fixture
def empty_machine(tmp_path: Path) -> Iterator[Machine]:
    """Boot a machine without payloadd."""
    need_tools("debootstrap", "systemd-nspawn", "dh_virtualenv", "dpkg-buildpackage")
    if os.geteuid() != 0:
        pytest.skip("a container with systemd needs root")
    (tmp_path / "machine").mkdir()
    with booted(tree(), tmp_path / "machine") as machine:
        shutil.rmtree(machine.root / "opt" / "payloadd")
        yield machine


def _build(folder: Path) -> Path:
    """Build the package as systemd/debian/rules says; return its path."""
    checkout = folder / "checkout"
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in filter(None, done.stdout.split("\0")):
        if (ROOT / name).exists():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    shutil.copytree(checkout / "systemd" / "debian", checkout / "debian")
    # The environment of a virtual environment or of coverage is not that of a build.
    kept = ("PIP_", "SSL_", "http", "HTTP", "no_proxy", "NO_PROXY")
    env = {name: text for name, text in os.environ.items() if name.startswith(kept)}
    built = subprocess.run(
        ["dpkg-buildpackage", "-b", "-us", "-uc"],
        cwd=checkout,
        env=env | {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_BUILD_SECONDS,
        check=False,
    )
    assert built.returncode == 0, built.stdout[-4000:] + built.stderr[-4000:]
    (package,) = folder.glob("payloadd_*.deb")
    return package


async def test_the_package_installs_a_service(empty_machine: Machine, tmp_path: Path) -> None:
    """An administrator with many machines would have to write a package."""
    machine = empty_machine
    own = await trio.run_process(["/usr/bin/python3", *_PYTHON[1:]], capture_stdout=True)
    if own.stdout.decode() != await machine.run(*_PYTHON):
        pytest.skip("the machine has another Python than the builder")
    package = await trio.to_thread.run_sync(partial(_build, tmp_path))
    shutil.copy(package, machine.root / "payloadd.deb")
    with trio.fail_after(DEADLINE):
        await machine.run("dpkg", "--install", "/payloadd.deb")
    assert (await machine.run("payloadd", "--version")).startswith("payloadd ")
    env = machine.root / "etc/payloadd/payloadd.env"
    assert env.stat().st_mode & 0o777 == 0o600
    machine.write("etc/payloadd/payloadd.env", "BIND=127.0.0.1:0\nADMIN_BIND=off\n", 0o600)
    assert "disabled" in await machine.run("systemctl", "is-enabled", "payloadd", check=False)
    await machine.run("systemctl", "start", "payloadd")
    assert "ok      delete" in await machine.run("payloadd", "systemd", "run", "check")
    assert (machine.root / "usr/share/man/man1/payloadd.1.gz").exists()
    await machine.run("dpkg", "--remove", "payloadd")
    assert await machine.run("systemctl", "is-active", "payloadd", check=False) == "inactive\n"
    assert (machine.root / "var/lib/payloadd/journal.db").exists()
    assert env.read_text().startswith("BIND=")
