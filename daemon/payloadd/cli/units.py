"""``payloadd systemd``: the units, where systemd looks for them.

Units go where an administrator's own software has them (``/usr/local``): what is changed with
``systemctl edit`` lies in ``/etc`` and is never touched. Settings, state and the user stay
when the units go.
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
# What is ours to write and to remove, by the name it has in the sources.
_FILES: Final = {
    "payloadd.service": _UNITS / "payloadd.service",
    "payloadd@.service": _UNITS / "payloadd@.service",
    "payloadd.socket": _UNITS / "payloadd.socket",
    "payloadd.target": _UNITS / "payloadd.target",
    "payloadd.sysusers": _SYSUSERS,
    "credentials.conf": Path("etc/payloadd/credentials.conf.example"),
}
_ENABLED: Final = ("payloadd.service", "payloadd.target", "payloadd.socket")
_COMMAND: Final = "/opt/payloadd/bin/payloadd"
"""The path of the command in the units as they come."""
# The last of 127.0.0.0/8 that an instance's number can be: see ADMIN_BIND in payloadd@.service.
_MOST_INSTANCES: Final = 254

_root = click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    default="/",
    help="Root of a system that does not run, such as an image.",
)


@click.group("systemd")
def systemd() -> None:
    """Put the systemd units in place, or take them away."""


@systemd.command()
@click.option(
    "--instances",
    type=click.IntRange(1, _MOST_INSTANCES),
    help="Processes that payloadd.target starts, sharing one socket (a process is one core).",
)
@_root
def install(instances: int | None, root: Path) -> None:
    """Put units, user and settings file in place; what is there already is brought up to date.

    A settings file that is there is left alone.
    """
    with _errors():
        for name, place in _FILES.items():
            _write(root / place, _source(name).replace(_COMMAND, _command(root)))
        if instances is not None or not (root / _INSTANCES).exists():
            _write(root / _INSTANCES, _wants(instances or 1))
        if not (root / _SETTINGS).exists():
            # Passwords may come to stand in it; systemd reads it as root.
            _write(root / _SETTINGS, _source("payloadd.env"), mode=0o600)
        if _is_running_system(root):
            _run("systemd-sysusers", str(root / _SYSUSERS))
            _run("systemctl", "daemon-reload")


@systemd.command()
@_root
def remove(root: Path) -> None:
    """Stop and disable payloadd, and take its units away.

    Settings (/etc/payloadd), state (/var/lib/payloadd) and the user stay.
    """
    with _errors():
        ours = [root / place for place in (*_FILES.values(), _INSTANCES)]
        found = [path for path in ours if path.exists()]
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
    """Return a file as it comes: in the wheel, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    folders = (package / "units", package.parents[1] / "systemd")
    folder = next(folder for folder in folders if folder.is_dir())
    return (folder / name).read_text(encoding="utf-8")


def _command(root: Path) -> str:
    """Return the path of the command that runs now, as it is called in ``root``."""
    # Not resolved: a virtual environment's python is a link to one outside of it.
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
    """Return whether systemd runs here, as sd_booted(3) finds out, and ``root`` is its system."""
    return root == Path("/") and Path("/run/systemd/system").is_dir()


def _run(*command: str) -> None:
    click.echo(f"ran      {' '.join(command)}")
    subprocess.run(command, check=True)  # noqa: S603 - nothing of it comes from outside


@contextmanager
def _errors() -> Iterator[None]:
    """Say in one line what went wrong, and end with exit 1."""
    try:
        yield
    except (OSError, subprocess.CalledProcessError) as error:
        click.echo(f"payloadd: {error}", err=True)
        sys.exit(1)
