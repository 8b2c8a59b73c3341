"""``payloadd send``: post the payloads of files to a daemon."""

from __future__ import annotations

import shlex
import signal
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import httpx
import trio
from click.core import ParameterSource

from payloadd.cli.sending.client import FileSender
from payloadd.cli.sending.files import InputFile, total_size
from payloadd.cli.sending.progress import report
from payloadd.config.parsers import duration
from payloadd.config.stream_names import NAME_RULE, is_stream_name
from payloadd.escaping import escape_controls
from payloadd.heap import reduce_garbage_collections
from payloadd.observe import standard_streams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.cli.sending.client import Place

_TIMEOUT: Final = 60.0
_LONGEST_GIVE_UP_AFTER: Final = 7 * 86_400.0


@click.command()
@click.argument("file", nargs=-1, required=True)
@click.option(
    "--url",
    default="http://127.0.0.1:8080",
    show_default=True,
    help="The daemon's address: http://…, https://… or unix:/path.",
)
@click.option("--stream", help="The stream to which the payloads belong.")
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    help="A file with the token for the daemon's AUTH_TOKENS.",
)
@click.option(
    "--from-line",
    type=click.IntRange(1),
    default=1,
    help="Leave out the lines, or the elements of an array, before this one in the first FILE.",
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    help="Requests at a time; with 1 the payloads are accepted in the order of the files.",
)
@click.option(
    "--give-up-after",
    default="5m",
    show_default=True,
    help="How long to repeat requests while none is accepted: ms, s, m or h.",
)
def send(
    file: tuple[str, ...],
    url: str,
    stream: str | None,
    token_file: Path | None,
    from_line: int,
    parallel: int,
    give_up_after: str,
) -> None:
    """Post the payloads of each FILE; ``-`` is the standard input.

    A FILE is NDJSON or one JSON array, plain or compressed with gzip or zstd. It is sent in parts.
    A daemon that is busy or out of reach is asked again, as late as its Retry-After says.

    Each part has an Idempotency-Key made of the file's path, the place in it and the content: a
    second run within 24 hours stores nothing twice. A part whose content has changed is new to the
    daemon, also where lines were only added to it.

    Certificates are checked against the system's authorities, or those of SSL_CERT_FILE.

    The exit status is 1 if anything was not accepted; the last line of the output says how to go
    on.
    """
    files = _input_files(file)
    retry_for = _seconds(give_up_after)
    headers = {} if token_file is None else {"Authorization": f"Bearer {_token(token_file)}"}
    target, socket_path = _target(url, stream)

    reduce_garbage_collections()

    async def run() -> tuple[FileSender, bool]:
        transport = httpx.AsyncHTTPTransport(verify=ssl.create_default_context(), uds=socket_path)
        async with httpx.AsyncClient(
            transport=transport, headers=headers, timeout=_TIMEOUT
        ) as client:
            sender = FileSender(client, target, files, from_line, parallel, retry_for)
            return sender, await _run(sender, total_size(files))

    sender, interrupted = trio.run(run)
    _end(sender, files, interrupted=interrupted)


def _input_files(names: Sequence[str]) -> list[InputFile]:
    files = []
    for name in names:
        try:
            files.append(InputFile.named(name))
        except OSError as error:
            problem = f"{escape_controls(name)}: {error.strerror}"
            raise click.BadParameter(problem, param_hint="FILE") from None
    if len({file.identity for file in files}) < len(files):
        raise click.BadParameter("a file is named twice", param_hint="FILE")
    return files


def _seconds(text: str) -> float:
    try:
        return duration(0, _LONGEST_GIVE_UP_AFTER)(text)
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} is not allowed; allowed is {error}", param_hint="--give-up-after"
        ) from None


def _token(path: Path) -> str:
    """Return the token in a file: its only line."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not ASCII"
        problem = f"{escape_controls(str(path))}: {reason}"
        raise click.BadParameter(problem, param_hint="--token-file") from None
    if not token or not token.isprintable() or " " in token:
        raise click.BadParameter(
            f"{escape_controls(str(path))} must have one token and nothing else",
            param_hint="--token-file",
        )
    return token


def _target(url: str, stream: str | None) -> tuple[str, str | None]:
    """Return the URL to post to, and the path of a Unix socket or None."""
    socket_path = None
    base = url
    if url.startswith("unix:"):
        socket_path, base = url.removeprefix("unix:").removeprefix("//"), "http://localhost"
    try:
        parsed = httpx.URL(base)
    except httpx.InvalidURL:
        parsed = httpx.URL("")
    if parsed.scheme not in {"http", "https"} or not parsed.host or socket_path == "":
        raise click.BadParameter(
            f"{url!r} is not allowed; allowed is http://host[:port], https://host[:port] or"
            " unix:/path",
            param_hint="--url",
        )
    path = parsed.path.rstrip("/")
    if not path.endswith("/v1/payloads"):
        path += "/v1/payloads"
    if stream is not None:
        if not is_stream_name(stream):
            raise click.BadParameter(f"{stream!r} is no name: {NAME_RULE}", param_hint="--stream")
        path += f"/{stream}"
    return str(parsed.copy_with(raw_path=path.encode())), socket_path


async def _run(sender: FileSender, total: int | None) -> bool:
    """Send all, with reports of the progress; return whether a signal has ended it."""
    interrupted = False
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def end_on_signal() -> None:
                nonlocal interrupted
                await anext(aiter(signals))
                interrupted = True
                nursery.cancel_scope.cancel()

            nursery.start_soon(end_on_signal)
            nursery.start_soon(report, sender, total)
            await sender.run()
            nursery.cancel_scope.cancel()
    return interrupted


def _end(sender: FileSender, files: Sequence[InputFile], *, interrupted: bool) -> None:
    """Print the result, and end with the exit status."""
    standard_streams.write_line(f"accepted {sender.accepted:,} payloads")
    place = sender.next_place
    if place is None and sender.failure is None:
        standard_streams.flush()
        sys.exit(0)
    reason = "interrupted" if interrupted else sender.failure or ""
    lines = [f"not all was accepted: {reason}"]
    if place is not None:
        name = files[place.file].name
        lines.append(f"first line that was not accepted: {place.line} of {name}")
        lines.append(f"go on with: {_command_for(place, files)}")
    for line in lines:
        standard_streams.write_line(f"payloadd send: {escape_controls(line)}", error=True)
    standard_streams.flush()
    sys.exit(1)


def _command_for(place: Place, files: Sequence[InputFile]) -> str:
    """Return the command that sends what is left."""
    words = ["payloadd", "send"]
    context = click.get_current_context()
    for option in context.command.params:
        name = option.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if given and isinstance(option, click.Option) and name != "from_line":
            words += [option.opts[0], str(context.params[name])]
    if place.line > 1:
        words += ["--from-line", str(place.line)]
    return shlex.join([*words, *(file.name for file in files[place.file :])])
