"""The command ``payloadd`` and its subcommands."""

from __future__ import annotations

import faulthandler
import sys
from dataclasses import fields, replace
from functools import partial
from typing import NoReturn

import click
import trio

from payloadd import open_files
from payloadd.build_info import version_text
from payloadd.cli.check import check
from payloadd.cli.journal import journal
from payloadd.cli.send import send
from payloadd.cli.token import token
from payloadd.cli.units import systemd
from payloadd.cli.wrong_settings import end_as_logged, end_for_reader
from payloadd.config import settings as config
from payloadd.config.misspelt import misspelt_names
from payloadd.errors import SettingsError
from payloadd.escaping import escape_controls
from payloadd.exit_status import ExitStatus
from payloadd.model.keys import key_problems
from payloadd.observe import logs, standard_streams
from payloadd.observe.unhandled_errors import escape_unhandled_errors
from payloadd.systemd.notify import is_journal

log = logs.get_logger(__name__)


def _settings_table() -> str:
    """Return a table of all settings, marked so that click does not wrap its lines."""
    rows = [(config.names_of(item.name)[0], item.metadata) for item in fields(config.Settings)]
    name_width = max(len(name) for name, _ in rows)
    default_width = max(len(row["default"] or "-") for _, row in rows)
    lines = [
        f"  {name:<{name_width}} {row['default'] or '-':<{default_width}} {row['doc']}"
        for name, row in rows
    ]
    return "\b\nSettings, from the environment (name, default, meaning):\n" + "\n".join(lines)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda context, _, given: _print_version(context) if given else None,
    help="Show version, commit and Python, and exit.",
)
def main() -> None:
    """Take JSON payloads by HTTP POST and store them in S3."""
    standard_streams.open_missing()
    escape_unhandled_errors()


main.add_command(journal)
main.add_command(send)
main.add_command(systemd)
main.add_command(token)


@main.command("serve", epilog=_settings_table())
def serve_command() -> None:
    """Run the daemon until SIGTERM or SIGINT, then drain.

    Without settings it listens on 127.0.0.1:8080 (admin on 127.0.0.1:8081) and writes objects to
    ./payloadd-data.
    """
    try:
        settings = config.load(check=key_problems)
    except SettingsError as error:
        end_as_logged(error, config.for_log())
    logs.configure(settings, journald=is_journal(sys.stderr))
    _warn_of_misspelt_names()
    # SIGABRT, which systemd's watchdog sends, writes the stacks of all threads to the log.
    faulthandler.enable()
    try:
        settings = open_files.limit_connections(settings, open_files.raise_limit())
        # Imported here: Quart and Hypercorn take as long as all the rest, and no other command
        # needs them.
        from payloadd import service  # noqa: PLC0415

        status = trio.run(service.run, settings)
    except SettingsError as error:
        end_as_logged(error, settings)
    _exit(status)


@main.command("check", epilog=_settings_table())
@click.option("--create", is_flag=True, help="Create the bucket or the folder if it is missing.")
def check_command(*, create: bool) -> None:
    """Try the settings: open the journal, get credentials, write one object and delete it.

    The right to put objects is enough. If the store lets the object be read, it is compared.
    """
    settings = _load()
    if settings.log_format == "journald":
        # The operator reads the lines beside the results.
        settings = replace(settings, log_format="auto")
    logs.configure(settings)
    _warn_of_misspelt_names()

    def write_line(line: str) -> None:
        standard_streams.write_line(escape_controls(line))

    good = trio.run(partial(check, settings, write_line, create=create))
    _exit(ExitStatus.DRAINED if good else ExitStatus.WRONG_SETTINGS)


def _print_version(context: click.Context) -> None:
    click.echo(version_text())
    context.exit()


def _load() -> config.Settings:
    try:
        return config.load(check=key_problems)
    except SettingsError as error:
        end_for_reader(error)


def _warn_of_misspelt_names() -> None:
    if names := misspelt_names():
        log.warning("names_ignored", similar=names, note="these variables are no settings")


def _exit(status: ExitStatus) -> NoReturn:
    """End the process with ``status``, also if nothing reads its output any more."""
    standard_streams.flush()
    sys.exit(status)
