"""TLS on a connected socket, in the same few steps as without.

trio's own ``SSLStream`` is for tasks; the lane reads what is there and never waits, so the
records go through OpenSSL in memory here, and the socket is read and written as it always is.
"""

from __future__ import annotations

import re
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Final

import trio

from payloadd.errors import SettingsError
from payloadd.ingress.server.socket_stream import NonBlockingStream
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from pathlib import Path

    from payloadd.config.settings import Settings
    from payloadd.ingress.server.fifo_gate import FifoGate

log = get_logger(__name__)

_RAW_BYTES: Final = 120 * 2**10
"""What a read takes: a POST of 64 KiB with its head, as without TLS."""
_MOST_UNREAD: Final = 64 * 2**10
"""Bytes that wait for a client which only makes TLS answer (with key updates, in TLS 1.3)."""


_PEM_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


class Certificates:
    """The files of TLS_CERT, TLS_KEY and TLS_CLIENT_CA, and what is made of them.

    Raises SettingsError if they cannot be used.
    """

    trust = 0
    """How often a certificate has been removed from TLS_CLIENT_CA: connections that were let in
    before the last time have to end."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._files = certificate, key, client_ca
        try:
            self.context, self._authorities = self._load()
        except (OSError, ssl.SSLError) as error:
            raise SettingsError([f"TLS_CERT, TLS_KEY, TLS_CLIENT_CA: {error}"]) from None

    def read_again(self) -> None:
        """Use the files as they are now for new connections; the old ones stay if they are bad."""
        try:
            self.context, authorities = self._load()
        except (OSError, ssl.SSLError) as error:
            log.error("tls_not_reloaded", reason=str(error))  # noqa: TRY400 - it is the file's
            return
        removed = len(self._authorities - authorities)
        if removed:
            self.trust += 1
        self._authorities = authorities
        log.info("tls_reloaded", client_authorities_removed=removed)

    def _load(self) -> tuple[ssl.SSLContext, frozenset[bytes]]:
        """Return a context, and the certificates that clients' certificates may be signed by."""
        certificate, key, client_ca = self._files
        # TLS 1.2 and newer, and what Python takes for strong ciphers.
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        # A key with a passphrase would have OpenSSL ask for it on a terminal.
        context.load_cert_chain(certificate, key, password=lambda: b"")
        context.set_alpn_protocols(["h2", "http/1.1"])
        if client_ca is None:
            return context, frozenset()
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
        return context, _pem_blocks(client_ca.read_bytes())


def _pem_blocks(text: bytes) -> frozenset[bytes]:
    """Return the blocks of a PEM file, without what stands between them and how they are broken.

    ``SSLContext.get_ca_certs`` leaves out a trusted certificate that is no authority's.
    """
    return frozenset(b"".join(block[0].split()) for block in _PEM_BLOCK.finditer(text))


def open_certificates(settings: Settings) -> Certificates | None:
    """Return what the settings name, None where TLS is not set; raises SettingsError."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return Certificates(settings.tls_cert, settings.tls_key, settings.tls_client_ca)


class TlsStream(NonBlockingStream):
    """One socket's bytes, encrypted by ``context``. ``handshake`` comes first."""

    buffers: ClassVar = True

    def __init__(self, stream: trio.SocketStream, context: ssl.SSLContext) -> None:
        super().__init__(stream)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._ended = False
        self._left = False
        self._shaken = 0

    async def handshake(self, fifo_gate: FifoGate) -> str | None:
        """Agree on keys; returns the protocol that was agreed on (ALPN, RFC 7301), or None.

        Each step waits for its turn: signing takes up to a millisecond. Raises
        BrokenResourceError for a client that does not speak TLS, or is not let in.
        """
        done = False
        while not done:
            await self._wait_readable()
            data = super().receive_now(_RAW_BYTES)
            if data == b"":
                raise trio.BrokenResourceError("the client left within the handshake")
            if data:
                self._shaken += len(data)
                self._incoming.write(data)
                await fifo_gate.next()
                done = self._shake()
        return self._tls.selected_alpn_protocol()

    def handshake_bytes(self) -> int:
        """Return how many bytes of the handshake have come."""
        return self._shaken

    def _shake(self) -> bool:
        """Take a step and send what comes of it; returns whether it was the last."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise trio.BrokenResourceError(str(error)) from error
        finally:
            self._send_records()
        return True

    @property
    def pending(self) -> bool:
        """Whether a read may find what the socket will not announce: records, or their end."""
        return self._ended or self._incoming.pending > 0 or self._tls.pending() > 0

    async def receive_some(self, max_bytes: int) -> bytes:
        """Return what came, b"" at the end."""
        # Also where there is something: a client that sends quickly is not the only one.
        await trio.lowlevel.checkpoint()
        while (data := self.receive_now(max_bytes)) is None:
            await self._wait_readable()
        return data

    def receive_now(self, max_bytes: int) -> bytes | None:
        """Return what is there, b"" at the end, None for nothing yet; this is no checkpoint.

        The end is what the client says of its end, or that of the socket: what is cut off is
        told by its Content-Length. What is more than the socket gives at once, it announces.
        """
        if self._left:
            return super().receive_now(max_bytes)
        found = bytearray()
        while len(found) < max_bytes and not self._ended:
            try:
                piece = self._tls.read(max_bytes - len(found))
                found += piece
                self._ended = not piece  # close_notify
            except ssl.SSLWantReadError:
                if found or not self._fetch():
                    break
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                self._ended = True
            except ssl.SSLError as error:
                raise trio.BrokenResourceError(str(error)) from error
        self._answer_records()
        return bytes(found) if found or self._ended else None

    def _fetch(self) -> bool:
        """Give OpenSSL what the socket has; returns False if that is nothing yet."""
        data = super().receive_now(_RAW_BYTES)
        if data == b"":
            self._ended = True
        elif data is not None:
            self._incoming.write(data)
        return data is not None

    def send_now(self, data: bytes) -> bool:
        """Send what there is room for; see QuickStream."""
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise trio.BrokenResourceError(str(error)) from error
        return self._send_records()

    async def send_eof(self) -> None:
        """Say so in TLS and to the socket; what is read behind it is neither decrypted nor used."""
        self.send_close()
        await self.flush()
        await super().send_eof()

    def send_close(self) -> None:
        """Send close_notify (RFC 8446, section 6.1), if there is room for it."""
        # An error is that the client has not said it yet, or sent more instead.
        with suppress(ssl.SSLError):
            self._tls.unwrap()
        self._left = True
        self._send_records()

    def _answer_records(self) -> None:
        """Send what OpenSSL has to say to what it has read: it does not by itself."""
        if self._outgoing.pending:
            self._send_records()
            if len(self._rest) > _MOST_UNREAD:
                raise trio.BrokenResourceError("the client makes TLS answer and does not read it")

    def _send_records(self) -> bool:
        """Send what OpenSSL has written, behind what there was no room for."""
        return super().send_now(self._rest + self._outgoing.read())
