"""``payloadd systemd``: install and remove the systemd units.

Units are written below ``/usr/local``, the place for software that an administrator installs.
Changes made with ``systemctl edit`` are in ``/etc`` and are not touched. A removal leaves settings,
state and the user.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNITS: Final = Path("usr/local/lib/systemd/system")
_SYSUSERS: Final = Path("usr/local/lib/sysusers.d/payloadd.conf")
_INSTANCES: Final = _UNITS / "payloadd.target.d/instances.conf"
_SETTINGS: Final = Path("etc/payloadd/payloadd.env")
FILES: Final = {
    "payloadd.service": _UNITS / "payloadd.service",
    "payloadd@.service": _UNITS / "payloadd@.service",
    "payloadd.socket": _UNITS / "payloadd.socket",
    "payloadd.target": _UNITS / "payloadd.target",
    "payloadd.sysusers": _SYSUSERS,
    "credentials.conf": Path("etc/payloadd/credentials.conf.example"),
}
"""Files that an installation writes and a removal deletes: name in the sources to path."""
_ENABLED: Final = ("payloadd.service", "payloadd.target", "payloadd.socket")
_COMMAND: Final = "/opt/payloadd/bin/payloadd"
"""The path of the command in the unit files of the sources."""
_MOST_INSTANCES: Final = 254
"""The number of an instance is the last part of its ADMIN_BIND: see payloadd@.service."""

_root = click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    default="/",
    help="Root folder of a system that is not running, such as an image.",
)


@click.group("systemd")
def systemd() -> None:
    """Install or remove the systemd units."""


@systemd.command()
@click.option(
    "--instances",
    type=click.IntRange(1, _MOST_INSTANCES),
    help="Processes that payloadd.target starts on one socket (each uses one core).",
)
@_root
def install(instances: int | None, root: Path) -> None:
    """Install units, user and settings file, or update them.

    An existing settings file is not changed.
    """
    with _errors():
        for name, path in FILES.items():
            _write(root / path, _source(name).replace(_COMMAND, _command(root)))
        if instances is not None or not (root / _INSTANCES).exists():
            _write(root / _INSTANCES, _wants(instances or 1))
        if not (root / _SETTINGS).exists():
            # Only for root: administrators may add passwords, and systemd reads it as root.
            _write(root / _SETTINGS, _source("payloadd.env"), mode=0o600)
        if _is_running_system(root):
            _run("systemd-sysusers", str(root / _SYSUSERS))
            _run("systemctl", "daemon-reload")


@systemd.command()
@_root
def remove(root: Path) -> None:
    """Stop and disable payloadd, and remove its units.

    Settings (/etc/payloadd), state (/var/lib/payloadd) and the user stay.
    """
    with _errors():
        installed = [root / path for path in (*FILES.values(), _INSTANCES)]
        found = [path for path in installed if path.exists()]
        if _is_running_system(root) and (root / _UNITS / _ENABLED[0]).exists():
            _run("systemctl", "disable", "--now", *_ENABLED)
        for path in found:
            path.unlink()
            click.echo(f"removed  {path}")
        if (root / _INSTANCES).parent.exists():
            (root / _INSTANCES).parent.rmdir()
        if _is_running_system(root):
            _run("systemctl", "daemon-reload")


def _source(name: str) -> str:
    """Return the text of a file in ``units`` of the wheel, or in ``systemd`` of a checkout."""
    package = Path(__file__).parents[1]
    folders = (package / "units", package.parents[1] / "systemd")
    folder = next(folder for folder in folders if folder.is_dir())
    return (folder / name).read_text(encoding="utf-8")


def _command(root: Path) -> str:
    """Return the path of this command as seen inside ``root``."""
    # Not resolved: the python of a virtual environment is a link to a file outside of it.
    path = Path(sys.executable).with_name("payloadd")
    return str(Path("/") / path.relative_to(root) if path.is_relative_to(root) else path)


def _wants(instances: int) -> str:
    names = " ".join(f"payloadd@{number}.service" for number in range(1, instances + 1))
    return f"[Unit]\nWants={names}\n"


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    known = path.exists() and path.read_text(encoding="utf-8") == text
    if not known:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode)
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
    click.echo(f"{'there' if known else 'wrote':<8} {path}")


def _is_running_system(root: Path) -> bool:
    """Return whether ``root`` is the running system and systemd manages it (sd_booted(3))."""
    return root == Path("/") and Path("/run/systemd/system").is_dir()


def _run(*command: str) -> None:
    click.echo(f"ran      {' '.join(command)}")
    subprocess.run(command, check=True)  # noqa: S603 - no part of the command is input


@contextmanager
def _errors() -> Iterator[None]:
    """Print an error of the body as one line, and exit with 1."""
    try:
        yield
    except (OSError, subprocess.CalledProcessError) as error:
        click.echo(f"payloadd: {error}", err=True)
        sys.exit(1)
