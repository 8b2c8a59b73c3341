"""``payloadd systemd``: install and remove the systemd units.

Units are written below ``/usr/local``, the place for software that an administrator installs, and
so are a link to the command, its man page, and its completion in shells.
Changes made with ``systemctl edit`` are in ``/etc`` and are not touched. A removal leaves settings,
state and the user.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from payloadd.cli.shell_files import completion, man_page

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
_SHARE: Final = Path("usr/local/share")
MAN_PAGE: Final = _SHARE / "man/man1/payloadd.1"
COMPLETIONS: Final = {
    "bash": _SHARE / "bash-completion/completions/payloadd",
    "zsh": _SHARE / "zsh/site-functions/_payloadd",
    "fish": _SHARE / "fish/vendor_completions.d/payloadd.fish",
}
"""Where each shell looks for the completion of a command."""
LINK: Final = Path("usr/local/bin/payloadd")
"""The command on the PATH: an administrator types it, and shells complete it."""
_OF_THE_PROCESS: Final = frozenset(
    {
        *("User", "Group", "UMask", "StateDirectory", "StateDirectoryMode", "WorkingDirectory"),
        *("Environment", "EnvironmentFile", "LoadCredential", "LoadCredentialEncrypted"),
        *("SetCredential", "SetCredentialEncrypted"),
    }
)
"""The directives of a unit that a command needs to see settings, credentials and journal."""
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
@click.pass_context
def install(context: click.Context, instances: int | None, root: Path) -> None:
    """Install units, user, settings file, man page and completion of shells, or update them.

    An existing settings file is not changed.
    """
    command = context.find_root().command
    with _errors():
        for name, path in FILES.items():
            _write(root / path, _source(name).replace(_COMMAND, _command(root)))
        if instances is not None or not (root / _INSTANCES).exists():
            _write(root / _INSTANCES, _wants(instances or 1))
        if not (root / _SETTINGS).exists():
            # Only for root: administrators may add passwords, and systemd reads it as root.
            _write(root / _SETTINGS, _source("payloadd.env"), mode=0o600)
        _write(root / MAN_PAGE, man_page(command))
        for shell, path in COMPLETIONS.items():
            _write(root / path, completion(shell, command))
        _link(root)
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
        files = (*FILES.values(), _INSTANCES, MAN_PAGE, *COMPLETIONS.values())
        found = [root / path for path in files if (root / path).exists()]
        if _is_our_link(root):
            found.append(root / LINK)
        if _is_running_system(root) and (root / _UNITS / _ENABLED[0]).exists():
            _run("systemctl", "disable", "--now", *_ENABLED)
        for path in found:
            path.unlink()
            click.echo(f"removed  {path}")
        if (root / _INSTANCES).parent.exists():
            (root / _INSTANCES).parent.rmdir()
        if _is_running_system(root):
            _run("systemctl", "daemon-reload")


@systemd.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.option(
    "--instance",
    type=click.IntRange(1, _MOST_INSTANCES),
    help="Number of an instance, where several run.",
)
@click.argument("arguments", metavar="COMMAND...", nargs=-1, required=True)
def run(instance: int | None, arguments: tuple[str, ...]) -> None:
    """Run a COMMAND of payloadd with the settings, credentials and user of the unit.

    For example: `payloadd systemd run check`, `payloadd systemd run journal dead list`.
    """
    unit = "payloadd.service" if instance is None else f"payloadd@{instance}.service"
    with _errors():
        shown = subprocess.run(  # noqa: S603 - no part of the command is input
            ["systemctl", "cat", unit],  # noqa: S607 - systemd's own, from the PATH of root
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        name = f"payloadd-command-{os.getpid()}"
        command = transient_unit(shown.stdout, str(instance or ""), name)
        status = _run_unit(name, [*command, _command(Path("/")), *arguments])
    sys.exit(status)


def _run_unit(name: str, command: list[str]) -> int:
    """Run systemd-run until the unit ends; return its status. Ctrl-C ends the unit too."""
    try:
        return subprocess.run(command, check=False).returncode  # noqa: S603 - no input
    except KeyboardInterrupt:
        _run("systemctl", "stop", name)
        return 130


def transient_unit(unit: str, instance: str, name: str) -> list[str]:
    """Return systemd-run ``name`` with what a unit (systemctl cat) says about its process.

    The sandbox is left out, and so is RuntimeDirectory=, which is deleted at the end.
    """
    lines = unit.replace("\\\n", " ").splitlines()
    # Specifiers are not expanded in properties of transient units.
    properties = (
        line.replace("%S", "/var/lib").replace("%i", instance)
        for line in lines
        if line.partition("=")[0] in _OF_THE_PROCESS
    )
    options = [f"--property={line}" for line in properties]
    run = ["systemd-run", f"--unit={name}", "--quiet", "--collect", "--wait", "--pipe"]
    return [*run, *options, "--"]


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


def _link(root: Path) -> None:
    """Make the link to the command, unless the place is taken by another program."""
    link, command = root / LINK, Path(_command(root))
    if link == root / str(command).lstrip("/"):
        return  # the command itself is there, as after `pip install` without a virtual environment
    if _is_our_link(root):
        if link.readlink() == command:
            click.echo(f"there    {link}")
            return
        link.unlink()
    elif link.exists() or link.is_symlink():
        click.echo(f"kept     {link}: not of payloadd")
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(command)
    click.echo(f"linked   {link} to {command}")


def _is_our_link(root: Path) -> bool:
    """Return whether the link was made by an installation: it leads to a command ``payloadd``."""
    link = root / LINK
    return link.is_symlink() and link.readlink().name == LINK.name


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
