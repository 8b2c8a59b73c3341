"""The rows of the part "clients": how a client connects and how it writes its requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Kind:
    """One form of client."""

    title: str
    form: str
    """The name of the form for the generator."""
    connections: int | None = None
    """Number of connections; None: that of the run."""
    options: tuple[str, ...] = ()
    """More options of the generator."""
    tls: bool = False
    go: bool = True
    """Whether the Go program can serve it, too."""
    base: str = "kept"
    """The kind with which it is compared."""


KINDS: Final[dict[str, Kind]] = {
    "kept": Kind("kept alive, Content-Length", "kept"),
    "close": Kind("a new connection each, `Connection: close`", "close"),
    "new": Kind("a new connection each, no `Connection`", "new"),
    "http10": Kind("HTTP/1.0, a new connection each", "http10"),
    "http10-kept": Kind("HTTP/1.0, `Connection: keep-alive`", "http10-kept"),
    "chunked": Kind("kept alive, chunked", "chunked"),
    "twice": Kind("kept alive, a header twice", "twice"),
    "pipelined": Kind("kept alive, 8 requests in one write", "pipelined"),
    "expect": Kind("kept alive, `Expect: 100-continue`", "expect"),
    "tls": Kind("TLS, kept alive", "kept", tls=True),
    "tls-new": Kind("TLS, a new connection each", "close", tls=True),
    "tls-resumed": Kind(
        "TLS, a new connection each, resumed", "close", options=("-resume",), tls=True
    ),
    "http2": Kind("HTTP/2 over TLS, 8 connections of 8 streams", "http2", 8, tls=True),
    **{
        f"kept-{number}": Kind(f"kept alive, {number:,} connections", "kept", number)
        for number in (8, 128, 1_000, 10_000)
    },
}


@dataclass(frozen=True, slots=True)
class Idle:
    """The memory of a daemon whose connections are idle."""

    connections: int
    before: int
    """Resident bytes without a connection."""
    after: int
    """Resident bytes with all of them."""

    @property
    def bytes_each(self) -> float:
        """Bytes of a connection."""
        return (self.after - self.before) / self.connections
