"""``payloadd token``: make a token for a client."""

from __future__ import annotations

import click

from payloadd.ingress.auth import new_token


@click.command()
@click.argument("name")
@click.option(
    "--streams", default="", help="The streams that the client may write to (comma list)."
)
def token(name: str, streams: str) -> None:
    """Print a new random token for the client NAME, and the line for the file of AUTH_TOKENS.

    The token is shown once: the line holds its SHA-256 only.
    """
    try:
        made, line = new_token(name, streams)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    click.echo(f"token:  {made}")
    click.echo(f"line:   {line}")
