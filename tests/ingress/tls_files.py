"""Certificates for the tests of TLS, and a client that decides which records go together."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import trio

from tests.ingress.rig import Rig, Wire, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    import trustme


@dataclass
class Files:
    """Certificates on disk, the settings that name them, and what a client trusts."""

    folder: Path
    authority: trustme.CA

    def write(self, authority: trustme.CA | None = None) -> None:
        """Write a new certificate for the server."""
        certificate = (authority or self.authority).issue_cert("127.0.0.1")
        certificate.cert_chain_pems[0].write_to_path(self.folder / "cert.pem")
        certificate.private_key_pem.write_to_path(self.folder / "key.pem")

    @property
    def environ(self) -> dict[str, str]:
        """The settings."""
        return {
            "TLS_CERT": str(self.folder / "cert.pem"),
            "TLS_KEY": str(self.folder / "key.pem"),
        }

    def running(
        self, max_connections: int = 50, **settings: str
    ) -> AbstractAsyncContextManager[Rig]:
        """Run the public app with them."""
        return running(None, max_connections=max_connections, **self.environ, **settings)

    def client_context(self, *protocols: str) -> ssl.SSLContext:
        """Return a client's context that trusts the authority."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if protocols:
            context.set_alpn_protocols(protocols)
        return context

    @asynccontextmanager
    async def wire(self, rig: Rig, context: ssl.SSLContext | None = None) -> AsyncIterator[Wire]:
        """Connect with TLS and without HTTP."""
        port = rig.listeners[0].socket.getsockname()[1]
        context = context or self.client_context()
        async with await trio.open_ssl_over_tcp_stream(
            "127.0.0.1", port, ssl_context=context, https_compatible=True
        ) as stream:
            yield Wire(cast("Any", stream))

    @asynccontextmanager
    async def records(self, rig: Rig, *protocols: str) -> AsyncIterator[Records]:
        """Connect, and leave all that belongs to TLS to the test."""
        port = rig.listeners[0].socket.getsockname()[1]
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            yield Records(stream, self.client_context(*protocols))


class Records:
    """A client whose records go out when it is told to."""

    def __init__(self, stream: trio.SocketStream, context: ssl.SSLContext) -> None:
        self._stream = stream
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")

    async def shake_hands(self) -> None:
        """Agree on keys; the client's last word (Finished) is still to be sent."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.send()
                self._incoming.write(await self._stream.receive_some())
            else:
                return

    def write(self, data: bytes) -> None:
        """Encrypt."""
        self.tls.write(data)

    def close_notify(self) -> None:
        """Say that this is the end."""
        with suppress(ssl.SSLWantReadError):
            self.tls.unwrap()

    async def send(self) -> None:
        """Send all that was written, at once."""
        await self._stream.send_all(self._outgoing.read())

    async def answer(self) -> bytes:
        """Return what comes up to the end of the JSON in it."""
        found = b""
        while not found.endswith(b"}"):
            found += await self._some()
        return found

    async def rest(self) -> bytes:
        """Return what comes up to close_notify; raises EOFError if there is none."""
        found = b""
        while piece := await self._some():
            found += piece
        return found

    async def _some(self) -> bytes:
        while (piece := self._decrypt()) is None:
            data = await self._stream.receive_some()
            if not data:
                raise EOFError("no close_notify")
            self._incoming.write(data)
        return piece

    def _decrypt(self) -> bytes | None:
        try:
            return self.tls.read(65_536)
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLZeroReturnError:
            return b""
