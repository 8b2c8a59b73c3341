"""The wheel is installed by pip, pipx and uv, each in a home of its own, without an index.

The installers and the dependencies come from the index of this machine, as wheels.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests.support.clients import post
from tests.support.daemon import END_WITHIN, ROOT, started
from tests.support.tools import give_up
from tests.support.wheel import build_wheel

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.large, pytest.mark.no_cover]

_INSTALLERS: Final = ("pip", "pipx>=1.7,<2", "uv>=0.5,<1")


def _run(*command: str | Path, home: Path) -> str:
    """Run a command as a user with an empty home; return its output."""
    done = subprocess.run(
        command,
        cwd=home,
        env={
            "HOME": str(home),
            "PATH": f"{home}/tools/bin:{home}/.local/bin:/usr/bin:/bin",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_CONFIG_FILE": "/dev/null",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with payloadd's wheel, those of its dependencies, and the installers'."""
    folder = tmp_path_factory.mktemp("wheels")
    build_wheel(folder)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    fetched = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"),
            *("--dest", str(folder), *project["dependencies"], *_INSTALLERS),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if fetched.returncode != 0:
        give_up(f"pip downloads no wheels: {fetched.stderr[-1000:]}")
    return folder


@pytest.mark.parametrize("installer", ["pip", "pipx", "uv"])
async def test_an_installer_installs_a_daemon_that_works(
    installer: str, wheels: Path, tmp_path: Path
) -> None:
    """A user whose installer is not pip would have no daemon."""
    options = ("--no-index", f"--find-links={wheels}")
    command = tmp_path / ".local" / "bin" / "payloadd"

    def install() -> None:
        _run(sys.executable, "-m", "venv", "tools", home=tmp_path)
        if installer == "pip":
            _run("tools/bin/pip", "install", *options, "payloadd", home=tmp_path)
            return
        _run("tools/bin/pip", "install", *options, installer, home=tmp_path)
        if installer == "pipx":
            pip = f"--pip-args={' '.join(options)}"
            python = f"--python={sys.executable}"
            _run("tools/bin/pipx", "install", python, pip, "payloadd", home=tmp_path)
        else:
            python = f"--python={sys.executable}"
            _run("tools/bin/uv", "tool", "install", python, *options, "payloadd", home=tmp_path)

    await trio.to_thread.run_sync(install)
    if installer == "pip":
        command = tmp_path / "tools" / "bin" / "payloadd"
    assert _run(command, "--version", home=tmp_path).startswith("payloadd ")
    # The package is that of the installation, not that of this checkout.
    async with started(tmp_path, {"PYTHONPATH": ""}, [str(command)]) as daemon:
        await daemon.wait_for_event("listening")
        await post(daemon.url, [b"1"])
        daemon.signal(15)
        assert (await daemon.drained(END_WITHIN))["stored"] == 1
    # What the installation brings besides the package.
    output = _run(command, "systemd", "install", "--root", tmp_path, home=tmp_path)
    assert f"linked   {tmp_path}/usr/local/bin/payloadd" in output
