"""``payloadd journal``: show the backlog, check the journal, and handle dead letters."""

from __future__ import annotations

import base64
import json
import sys
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click
import msgspec

from payloadd.cli.wrong_settings import end_for_reader
from payloadd.config import settings as config
from payloadd.errors import PayloaddError, SettingsError
from payloadd.escaping import (
    escape_controls,
    escape_controls_in_json,
    escape_controls_in_lines,
)
from payloadd.journal.open import damage_line, inspect_journal
from payloadd.model.streams import DEFAULT_NAME
from payloadd.observe.status import journal_document, journal_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from payloadd.journal.inspection import DeadLetter, JournalInspection

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
of_lane = click.option(
    "--lane", type=click.IntRange(1), metavar="N", help="Only this lane of a shared journal."
)


@contextmanager
def _inspection(lane: int | None = None) -> Iterator[JournalInspection]:
    """Open the journal of the settings; print errors, then exit with 78 (settings) or 1."""
    try:
        with inspect_journal(config.load(), lane) as inspection:
            yield inspection
    except SettingsError as error:
        end_for_reader(error)
    except PayloaddError as error:
        click.echo(f"payloadd: {escape_controls(str(error))}", err=True)
        sys.exit(1)


@click.group("journal")
def journal() -> None:
    """Show and change the journal of a running or a stopped daemon.

    It is in STATE_DIR, or in the database of JOURNAL_URL: then with all of its lanes.
    """


@journal.command()
@as_json
@of_lane
def status(*, as_json: bool, lane: int | None) -> None:
    """Print the backlog, its bytes and oldest age, sealed batches and dead letters."""
    with _inspection(lane) as inspection:
        found = inspection.status()
    if as_json:
        click.echo(json.dumps(journal_document(found)))
        return
    for line in journal_lines(found):
        click.echo(escape_controls(line))


@journal.command()
@as_json
@of_lane
def verify(*, as_json: bool, lane: int | None) -> None:
    """Check every row and file of the journal; list damage and exit with 1 if there is any.

    The daemon may run meanwhile. Nothing is repaired: the daemon repairs damage when it reads the
    damaged row, and keeps payloads that cannot be stored as dead letters with the code DAMAGED.
    """
    with _inspection(lane) as inspection:
        found = inspection.verify()
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in found]))
    else:
        for finding in found:
            click.echo(escape_controls(damage_line(finding)))
        click.echo(f"{len(found)} pieces of damage" if found else "no damage")
    sys.exit(1 if found else 0)


@journal.group()
def dead() -> None:
    """Show, retry and drop dead letters: batches that the store refused for good, and damage."""


@dead.command("list")
@as_json
@of_lane
def list_dead(*, as_json: bool, lane: int | None) -> None:
    """List dead letters, oldest first."""
    with _inspection(lane) as inspection:
        letters = inspection.dead()
    if as_json:
        click.echo(json.dumps([asdict(letter) for letter in letters]))
        return
    for letter in letters:
        at = datetime.fromtimestamp(letter.at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        retry = "  (will be tried again)" if letter.retry else ""
        stream = "" if letter.stream == DEFAULT_NAME else f"{_stream_of(letter)}  "
        line = f"{letter.id}  {at}  {letter.payloads} payloads  {stream}{letter.reason}{retry}"
        click.echo(escape_controls(line))


def _stream_of(letter: DeadLetter) -> str:
    return "unknown stream" if letter.stream is None else letter.stream


@dead.command()
@as_json
@click.argument("id_", metavar="ID")
def show(id_: str, *, as_json: bool) -> None:
    """Print the payloads of a dead letter as NDJSON, and on stderr the name of its stream.

    The default stream is not named. With --json: one object, which has what `dead list` says of the
    dead letter, its payloads as `content`, and as `unparsed` (base64) the lines of a damaged one
    that are not JSON.
    """
    with _inspection() as inspection:
        lines = inspection.lines(id_)
        letters = [letter for letter in inspection.dead() if letter.id == id_]
    if as_json:
        click.echo(_letter_document(letters, lines))
        return
    for letter in letters:
        if letter.stream != DEFAULT_NAME:
            click.echo(escape_controls(f"stream {_stream_of(letter)}"), err=True)
    # Escaped for a terminal, which would execute control sequences; a file gets the exact bytes.
    sys.stdout.buffer.write(_for_terminal(lines) if sys.stdout.isatty() else lines)


def _for_terminal(lines: bytes) -> bytes:
    """Return lines with all controls escaped. Those of a damaged dead letter may be no JSON."""
    text = escape_controls_in_json(lines).decode(errors="surrogateescape")
    return escape_controls_in_lines(text).encode()


def _letter_document(letters: list[DeadLetter], lines: bytes) -> bytes:
    """Return a dead letter with its payloads as JSON. A daemon may revive it meanwhile."""
    content, unparsed = [], []
    for line in lines.removesuffix(b"\n").split(b"\n"):
        try:
            msgspec.json.decode(line.decode())
        except (ValueError, RecursionError):
            unparsed.append(base64.b64encode(line).decode())
        else:
            content.append(msgspec.Raw(line))
    known = asdict(letters[0]) if letters else {}
    document = msgspec.json.encode({**known, "content": content, "unparsed": unparsed})
    return escape_controls_in_json(document)


@dead.command()
@as_json
@of_lane
@click.argument("ids", nargs=-1, metavar="[ID]...")
def retry(ids: tuple[str, ...], *, as_json: bool, lane: int | None) -> None:
    """Queue dead letters for upload again, all of them without an ID."""
    with _inspection(lane) as inspection:
        count = inspection.retry(ids)
        running = inspection.status().process is not None
    if as_json:
        click.echo(json.dumps({"retried": count, "running": running}))
        return
    when = "within a second" if running else "when the daemon is started"
    click.echo(f"{count} dead letters will be tried again {when}")


@dead.command()
@as_json
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
def drop(ids: tuple[str, ...], *, as_json: bool) -> None:
    """Remove dead letters; their payloads are lost."""
    with _inspection() as inspection:
        dropped = inspection.drop(ids)
    click.echo(json.dumps({"dropped": dropped}) if as_json else f"{dropped} dead letters dropped")
