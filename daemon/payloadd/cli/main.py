"""The command ``payloadd``: ``serve``, ``check``, ``journal``, ``systemd`` and ``token``."""

from __future__ import annotations

import faulthandler
import sys
from dataclasses import fields
from typing import NoReturn

import click
import trio

from payloadd import __version__, open_files, service
from payloadd.cli.check import check
from payloadd.cli.journal import journal
from payloadd.cli.token import token
from payloadd.cli.units import systemd
from payloadd.config import settings as config
from payloadd.errors import SettingsError
from payloadd.escaping import escape_controls
from payloadd.model.keys import key_problems
from payloadd.observe import logs
from payloadd.systemd.notify import Notifier, is_journal

log = logs.get_logger(__name__)


def _settings_table() -> str:
    """Return a table of all settings, marked so that click does not wrap its lines."""
    rows = [
        (config.ENVIRONMENT_NAMES.get(item.name, (item.name.upper(),))[0], item.metadata)
        for item in fields(config.Settings)
    ]
    name_width = max(len(name) for name, _ in rows)
    default_width = max(len(row["default"] or "-") for _, row in rows)
    lines = [
        f"  {name:<{name_width}} {row['default'] or '-':<{default_width}} {row['doc']}"
        for name, row in rows
    ]
    return "\b\nSettings, from the environment (name, default, meaning):\n" + "\n".join(lines)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="payloadd")
def main() -> None:
    """Take JSON payloads by HTTP POST and store them in S3."""


main.add_command(journal)
main.add_command(systemd)
main.add_command(token)


@main.command("serve", epilog=_settings_table())
def serve_command() -> None:
    """Run the daemon until SIGTERM or SIGINT, then drain.

    Without settings it listens on 127.0.0.1:8080 (admin on 127.0.0.1:8081) and writes objects to
    ./payloadd-data.
    """
    settings = _load()
    logs.configure(settings, journald=is_journal(sys.stderr))
    _warn_of_misspelt_names()
    # SIGABRT, which systemd's watchdog sends, writes the stacks of all threads to the log.
    faulthandler.enable()
    try:
        settings = open_files.limit_connections(settings, open_files.raise_limit())
        status = trio.run(service.run, settings)
    except SettingsError as error:
        _fail(error)
    sys.exit(status)


@main.command("check", epilog=_settings_table())
def check_command() -> None:
    """Try the settings: open the journal, get credentials, write and delete one object."""
    settings = _load()
    logs.configure(settings)
    _warn_of_misspelt_names()
    good = trio.run(check, settings, lambda line: click.echo(escape_controls(line)))
    sys.exit(0 if good else service.ExitStatus.WRONG_SETTINGS)


def _load() -> config.Settings:
    try:
        return config.load(check=key_problems)
    except SettingsError as error:
        _fail(error)


def _warn_of_misspelt_names() -> None:
    if names := config.misspelt_names():
        log.warning("names_ignored", similar=names, note="these variables are no settings")


def _fail(error: SettingsError) -> NoReturn:
    mark = logs.priority_prefix("error") if is_journal(sys.stderr) else ""
    for problem in error.problems:
        click.echo(f"{mark}payloadd: {escape_controls(problem)}", err=True)
    Notifier().status("wrong settings: " + "; ".join(error.problems))
    sys.exit(service.ExitStatus.WRONG_SETTINGS)
