"""Certificates for the tests of TLS, and a client that controls when records are sent."""

from __future__ import annotations

import os
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
    """Certificates on disk, the settings that name them, and contexts for clients."""

    folder: Path
    authority: trustme.CA

    def write(self, authority: trustme.CA | None = None) -> None:
        """Write a new certificate for the server."""
        certificate = (authority or self.authority).issue_cert("127.0.0.1")
        certificate.cert_chain_pems[0].write_to_path(self.folder / "cert.pem")
        certificate.private_key_pem.write_to_path(self.folder / "key.pem")

    @property
    def environ(self) -> dict[str, str]:
        """The settings TLS_CERT and TLS_KEY."""
        return {
            "TLS_CERT": str(self.folder / "cert.pem"),
            "TLS_KEY": str(self.folder / "key.pem"),
        }

    def running(
        self, max_connections: int = 50, **settings: str
    ) -> AbstractAsyncContextManager[Rig]:
        """Run the public app with the certificates."""
        environ = {**self.environ, **settings}
        return running(None, max_connections=max_connections, options=None, **environ)

    def client_context(self, *protocols: str) -> ssl.SSLContext:
        """Return a client's context that trusts the authority."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if protocols:
            context.set_alpn_protocols(protocols)
        return context

    @asynccontextmanager
    async def wire(self, rig: Rig, context: ssl.SSLContext | None = None) -> AsyncIterator[Wire]:
        """Connect with TLS."""
        port = rig.listeners[0].socket.getsockname()[1]
        context = context or self.client_context()
        async with await trio.open_ssl_over_tcp_stream(
            "127.0.0.1", port, ssl_context=context, https_compatible=True
        ) as stream:
            yield Wire(cast("Any", stream))

    @asynccontextmanager
    async def records(self, rig: Rig, *protocols: str) -> AsyncIterator[Records]:
        """Connect, and leave the handshake and the records of TLS to the test."""
        port = rig.listeners[0].socket.getsockname()[1]
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            yield Records(stream, self.client_context(*protocols))


class Records:
    """A client that sends its TLS records when ``send`` is called."""

    def __init__(self, stream: trio.SocketStream, context: ssl.SSLContext) -> None:
        self._stream = stream
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")

    async def handshake(self) -> None:
        """Do the handshake; the client's last message (Finished) is still to be sent."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self.send()
                self._incoming.write(await self._stream.receive_some())
            else:
                return

    def write(self, data: bytes) -> None:
        """Encrypt ``data``; ``send`` sends it."""
        self.tls.write(data)

    def close_notify(self) -> None:
        """Write the alert that ends TLS; ``send`` sends it."""
        with suppress(ssl.SSLWantReadError):
            self.tls.unwrap()

    async def send(self) -> None:
        """Send all written records at once."""
        await self._stream.send_all(self._outgoing.read())

    def send_now(self) -> None:
        """Send them before the server can run."""
        os.write(self._stream.socket.fileno(), self._outgoing.read())

    async def answer(self) -> bytes:
        """Return the decrypted bytes up to the end of a JSON object."""
        found = b""
        while not found.endswith(b"}"):
            found += await self._some()
        return found

    async def rest(self) -> bytes:
        """Return the decrypted bytes up to close_notify; raises EOFError without close_notify."""
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
