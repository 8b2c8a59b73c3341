"""TLS on a connected socket, in the same few steps as without.

trio's own ``SSLStream`` is for tasks; the lane reads what is there and never waits, so the
records go through OpenSSL in memory here, and the socket is read and written as it always is.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

import trio

from daemon.errors import SettingsError
from daemon.ingress.quick import QuickStream
from daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from daemon.config import Settings

log = get_logger(__name__)

_RAW_BYTES: Final = 65_536


class Certificates:
    """The files of TLS_CERT, TLS_KEY and TLS_CLIENT_CA, and what is made of them.

    Raises SettingsError if they cannot be used.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._files = certificate, key, client_ca
        try:
            self.context = self._load()
        except (OSError, ssl.SSLError) as error:
            raise SettingsError([f"TLS_CERT, TLS_KEY, TLS_CLIENT_CA: {error}"]) from None

    def read_again(self) -> None:
        """Use the files as they are now for new connections; the old ones stay if they are bad."""
        try:
            self.context = self._load()
        except (OSError, ssl.SSLError) as error:
            log.error("tls_not_reloaded", reason=str(error))  # noqa: TRY400 - it is the file's
        else:
            log.info("tls_reloaded")

    def _load(self) -> ssl.SSLContext:
        certificate, key, client_ca = self._files
        # TLS 1.2 and newer, and what Python takes for strong ciphers.
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        # A key with a passphrase would have OpenSSL ask for it on a terminal.
        context.load_cert_chain(certificate, key, password=lambda: b"")
        context.set_alpn_protocols(["h2", "http/1.1"])
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def open_certificates(settings: Settings) -> Certificates | None:
    """Return what the settings name, None where TLS is not set; raises SettingsError."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return Certificates(settings.tls_cert, settings.tls_key, settings.tls_client_ca)


class TlsStream(QuickStream):
    """One socket's bytes, encrypted by ``context``. ``handshake`` comes first."""

    def __init__(self, stream: trio.SocketStream, context: ssl.SSLContext) -> None:
        super().__init__(stream)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._pending = False

    async def handshake(self) -> str | None:
        """Agree on keys; returns the protocol that was agreed on (ALPN, RFC 7301), or None.

        Raises BrokenResourceError for a client that does not speak TLS, or is not let in.
        """
        while not self._step(self._tls.do_handshake):
            await trio.lowlevel.wait_readable(self.socket)
            data = super().receive_now(_RAW_BYTES)
            if data == b"":
                raise trio.BrokenResourceError("the client left within the handshake")
            self._incoming.write(data or b"")
        return self._tls.selected_alpn_protocol()

    def _step(self, function: Callable[[], object]) -> bool:
        """Take a step and send what comes of it; returns whether it was the last."""
        try:
            function()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise trio.BrokenResourceError(str(error)) from error
        finally:
            self._send_records()
        return True

    @property
    def pending(self) -> bool:
        """Whether the last read left something that the socket will not announce."""
        return self._pending

    async def receive_some(self, max_bytes: int) -> bytes:
        """Return what came, b"" at the end."""
        while (data := self.receive_now(max_bytes)) is None:
            await trio.lowlevel.wait_readable(self.socket)
        return data

    def receive_now(self, max_bytes: int) -> bytes | None:
        """Return what is there, b"" at the end, None for nothing yet; this is no checkpoint.

        The end is what the client says of its end, or that of the socket: what is cut off is
        told by its Content-Length.
        """
        found = bytearray()
        while len(found) < max_bytes:
            piece = self._decrypt(max_bytes - len(found))
            if not piece:
                self._pending = False
                return bytes(found) or piece
            found += piece
        self._pending = True
        return bytes(found)

    def _decrypt(self, max_bytes: int) -> bytes | None:
        """Return some of the next record, b"" at the end, None for nothing yet."""
        while True:
            try:
                return self._tls.read(max_bytes)
            except ssl.SSLWantReadError:
                data = super().receive_now(_RAW_BYTES)
                if data is None:
                    return None
                if not data:
                    return b""
                self._incoming.write(data)
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            except ssl.SSLError as error:
                raise trio.BrokenResourceError(str(error)) from error

    def send_now(self, data: bytes) -> bool:
        """Send what there is room for; see QuickStream."""
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise trio.BrokenResourceError(str(error)) from error
        return self._send_records()

    async def send_eof(self) -> None:
        """Say so in TLS (close_notify), and that nothing more will be sent."""
        self._step(self._tls.unwrap)
        await self.flush()
        await super().send_eof()

    def _send_records(self) -> bool:
        """Send what OpenSSL has written, behind what there was no room for."""
        return self._write(self._rest + self._outgoing.read())
