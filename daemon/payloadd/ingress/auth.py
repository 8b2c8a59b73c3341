"""Check the tokens of clients (AUTH_TOKENS).

The file has a line for each token: ``name:digest[:stream,stream...]``. The digest is the SHA-256 of
the token in hexadecimal digits, so the file holds no secret. A token has 256 random bits: it needs
no slow hash, and no salt. Tokens are found by their digest, so the time of a comparison tells
nothing about them.

A client sends its token as a bearer token (RFC 6750, section 2.1), or as the password of Basic
credentials (RFC 7617), whose user name is ignored.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from base64 import b64decode
from typing import TYPE_CHECKING, Final, NamedTuple

from payloadd.config.stream_names import NAME_RULE, is_stream_name, some_of
from payloadd.errors import SettingsError
from payloadd.ingress.problem import Problem
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

log = get_logger(__name__)

_CREDENTIALS: Final = re.compile(r"(bearer|basic) +([A-Za-z0-9._~+/-]{1,4096}=*)", re.IGNORECASE)
"""Scheme and token68 (RFC 9110, section 11.4)."""
_NAME: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_LINE: Final = re.compile(
    rf"(?P<name>{_NAME.pattern}):(?P<digest>[0-9a-fA-F]{{64}})(?::(?P<streams>[^:]*))?"
)
_CHALLENGES: Final = 'Bearer realm="payloadd"%s, Basic realm="payloadd", charset="UTF-8"'
_TOKEN_BYTES: Final = 32
_UNKNOWN_STREAMS_NOTE: Final = (
    "the tokens of these clients name streams that are not in STREAMS, and cannot write to them;"
    " correct STREAMS or AUTH_TOKENS"
)


class Client(NamedTuple):
    """An authenticated client."""

    name: str
    streams: frozenset[str] | None
    """The streams that the client may write to; None: all of them."""


class TokenFile:
    """The tokens of a file, which can be read again while the daemon runs."""

    def __init__(self, path: Path, streams: frozenset[str] | None = None) -> None:
        """Read the file; ``streams`` are the names of the known streams, None: all are.

        A stream that is not known is no error: otherwise no stream could leave STREAMS before all
        its tokens have left the file. Raises SettingsError if the file cannot be used.
        """
        self._path = path
        self._streams = streams
        try:
            self._clients = _read(path)
        except (OSError, ValueError) as error:
            raise SettingsError([f"AUTH_TOKENS: {path}: {error}"]) from None

    def unknown_streams(self) -> dict[str, list[str]]:
        """Return the clients whose tokens name streams that are not known, and these streams."""
        if self._streams is None:
            return {}
        found = {
            client.name: sorted((client.streams or frozenset()) - self._streams)
            for client in self._clients.values()
        }
        return {name: streams for name, streams in found.items() if streams}

    def warn_of_unknown_streams(self) -> None:
        """Log a warning if tokens name streams that are not known."""
        unknown = self.unknown_streams()
        if unknown:
            log.warning(
                "tokens_of_unknown_streams",
                path=str(self._path),
                clients=some_of(sorted(unknown)),
                streams=some_of(sorted({one for names in unknown.values() for one in names})),
                note=_UNKNOWN_STREAMS_NOTE,
            )

    def reload(self) -> None:
        """Read the file again.

        If it cannot be used, log ``tokens_not_reloaded`` and keep the tokens: a file that is being
        written may be incomplete.
        """
        try:
            clients = _read(self._path)
        except (OSError, ValueError) as error:
            log.error(  # noqa: TRY400 - the reason is enough
                "tokens_not_reloaded", path=str(self._path), reason=str(error)
            )
        else:
            self._clients = clients
            log.info("tokens_reloaded", path=str(self._path), tokens=len(clients))
            self.warn_of_unknown_streams()

    def authenticate(self, digest: bytes | None) -> Client:
        """Return the client with a token, of which ``token_digest`` has made ``digest``.

        Raises Problem UNAUTHENTICATED.
        """
        if digest is None:
            detail = "the request needs a token: Authorization: Bearer TOKEN"
            raise Problem("UNAUTHENTICATED", detail, {"WWW-Authenticate": _CHALLENGES % ""})
        client = self._clients.get(digest)
        if client is None:
            headers = {"WWW-Authenticate": _CHALLENGES % ', error="invalid_token"'}
            raise Problem("UNAUTHENTICATED", "the token is not known", headers)
        return client


def token_digest(authorization: str | None) -> bytes | None:
    """Return the SHA-256 of the token in an Authorization header.

    Returns None if the header is missing or empty, and b"" if it has another form: no token has
    that digest.
    """
    if not authorization:
        return None
    token = _token_of(authorization)
    return hashlib.sha256(token).digest() if token else b""


def forbidden(streams: frozenset[str]) -> Problem:
    """Return the 403 for a client whose token is for ``streams`` only."""
    allowed = ", ".join(some_of(sorted(streams)))
    return Problem("FORBIDDEN", f"the token is for these streams only: {allowed}")


def new_token(name: str, streams: str = "") -> tuple[str, str]:
    """Return a new random token, and the line for it in the file of AUTH_TOKENS.

    Raises ValueError for a name, or a list of streams, that the file may not have.
    """
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    digest = hashlib.sha256(token.encode()).hexdigest()
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not a name: 1 to 64 letters, digits and ._@-")
    line = ":".join((name, digest, streams) if streams else (name, digest))
    _parse(line + "\n")
    return token, line


def _token_of(authorization: str) -> bytes | None:
    """Return the token of an Authorization header; None if the header has another form."""
    found = _CREDENTIALS.fullmatch(authorization.strip())
    if found is None:
        return None
    if found[1].lower() == "bearer":
        return found[2].encode("ascii")
    try:
        _, colon, password = b64decode(found[2], validate=True).partition(b":")
    except ValueError:
        return None
    return password if colon else None


def _read(path: Path) -> Mapping[bytes, Client]:
    """Return the clients of a file. Raises OSError or ValueError."""
    return _parse(path.read_text(encoding="utf-8"))


def _parse(text: str) -> Mapping[bytes, Client]:
    """Return the clients of the file by the digest of their token. Raises ValueError."""
    if not text.endswith("\n"):
        raise ValueError("the last line has no line break: the file is not complete")
    clients: dict[bytes, Client] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        found = _LINE.fullmatch(entry)
        if found is None:
            raise ValueError(
                f"line {number} is not name:sha256-hex-of-token[:stream,stream...]"
                " (letters, digits and ._@- in a name; `payloadd token NAME` prints such a line)"
            )
        digest = bytes.fromhex(found["digest"])
        if digest in clients:
            raise ValueError(f"line {number} has the token of another line")
        clients[digest] = Client(found["name"], _streams(found["streams"], number))
    if not clients:
        raise ValueError("the file has no token")
    return clients


def _streams(text: str | None, number: int) -> frozenset[str] | None:
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if not is_stream_name(name):
            raise ValueError(f"line {number}: {name!r} is not the name of a stream ({NAME_RULE})")
    return frozenset(names)
