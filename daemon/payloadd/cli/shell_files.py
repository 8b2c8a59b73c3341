"""The files that shells and man(1) read about the command, made from the command line itself."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from typing import TYPE_CHECKING, Final

import click
from click.shell_completion import BashComplete, FishComplete, ShellComplete, ZshComplete

from payloadd import __version__
from payloadd.config import settings as config

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME: Final = "payloadd"
_SHELLS: Final = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
_SECTIONS: Final = (
    (
        "EXIT STATUS",
        (
            ("0", "Drained; nothing is lost."),
            ("1", "An internal failure, or a start that failed; the log says why."),
            ("2", "A wrong command line."),
            ("75", "Drained, but payloads of DURABILITY=memory are lost; the log says how many."),
            ("78", "Settings are wrong; each of them is named."),
        ),
    ),
    (
        "SIGNALS",
        (
            ("SIGTERM, SIGINT", "Finish accepted work and stop; a second one stops at once."),
            ("SIGHUP", "Read tokens, TLS files and keys for S3 again."),
        ),
    ),
    (
        "FILES",
        (
            ("/etc/payloadd/payloadd.env", "Settings of the systemd units."),
            ("/var/lib/payloadd", "The journal of the systemd units."),
        ),
    ),
)


def completion(shell: str, command: click.Command) -> str:
    """Return the script with which ``shell`` (bash, zsh or fish) completes the command line."""
    made = _SHELLS[shell](command, {}, _NAME, "_PAYLOADD_COMPLETE")
    # Not made.source(): that for bash runs bash, and warns where there is none.
    return ShellComplete.source(made)


def man_page(command: click.Command) -> str:
    """Return a page for man(1) with all commands and settings, in the macros of man(7)."""
    context = click.Context(command, info_name=_NAME)
    lines = [
        f'.TH PAYLOADD 1 "" "payloadd {__version__}"',
        *(".SH NAME", f"{_NAME} \\- {_escaped((command.help or '').rstrip('.'))}"),
        *(".SH SYNOPSIS", f".B {_NAME}", "COMMAND [OPTIONS] ..."),
        *(".SH COMMANDS", *_commands(command, context)),
        *(".SH SETTINGS", "Environment variables, or files of the same name in lower case in"),
        "$CREDENTIALS_DIRECTORY. In brackets: the default.",
        *_entries(_settings()),
    ]
    for title, entries in _SECTIONS:
        lines += [f".SH {title}", *_entries(entries)]
    return "\n".join(lines) + "\n"


def _commands(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield the lines about ``command``, if it is no group, or else about all in it."""
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            if (inner := command.get_command(context, name)) is not None:
                yield from _commands(inner, click.Context(inner, context, name))
        return
    usage = " ".join(command.collect_usage_pieces(context))
    yield f".SS {_escaped(context.command_path)} {_escaped(usage)}"
    for number, paragraph in enumerate(inspect.cleandoc(command.help or "").split("\n\n")):
        if number:
            yield ".PP"
        yield from _paragraph(paragraph)
    records = (one.get_help_record(context) for one in command.get_params(context))
    # Arguments have no help, and are in the usage; --help is the same everywhere.
    yield from _entries(one for one in records if one and one[1] and "--help" not in one[0])


def _settings() -> Iterator[tuple[str, str]]:
    for item in fields(config.Settings):
        name, *_ = config.names_of(item.name)
        default = item.metadata["default"]
        yield name, item.metadata["doc"] + (f" [{default}]" if default else "")


def _entries(entries: Iterator[tuple[str, str]] | tuple[tuple[str, str], ...]) -> Iterator[str]:
    """Yield tagged paragraphs: each term in bold, its explanation indented."""
    for term, text in entries:
        yield ".TP"
        yield f".B {_escaped(term)}"
        yield from _paragraph(text)


def _paragraph(text: str) -> Iterator[str]:
    """Yield the lines of a paragraph; after click's mark (a backspace) they are not filled."""
    kept = text.startswith("\b")
    if kept:
        yield ".nf"
    yield from (_escaped(line) for line in text.removeprefix("\b").strip().splitlines())
    if kept:
        yield ".fi"


def _escaped(text: str) -> str:
    """Return ``text`` as groff_char(7) names it, so that it is shown and copied as it is.

    Backslashes, and dots at the beginning of a line, would be requests. Hyphens, quotes and the
    like would become typographic ones, and characters outside of ASCII depend on the locale.
    """
    shown = re.sub(r"[^ -~]|[\\\"'^~`-]", lambda found: _character(found[0]), text.strip())
    return f"\\&{shown}" if shown.startswith(".") else shown


def _character(one: str) -> str:
    return _CHARACTERS.get(one) or f"\\[u{ord(one):04X}]"


_CHARACTERS: Final = {
    "\\": "\\e",
    '"': "\\(dq",
    "'": "\\(aq",
    "^": "\\(ha",
    "~": "\\(ti",
    "`": "\\(ga",
    "-": "\\-",
}
