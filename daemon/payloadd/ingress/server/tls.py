"""TLS on a connected socket, with the interface of ``NonBlockingStream``.

trio's ``SSLStream`` needs a task per connection. The fast path reads the data that has arrived and
never waits. So OpenSSL processes the records in memory here, and the socket is read and written as
without TLS.
"""

from __future__ import annotations

import re
import ssl
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final

import trio

from payloadd.errors import SettingsError
from payloadd.ingress.server.socket_stream import NonBlockingStream
from payloadd.ingress.server.tls_problem import tls_problem
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from payloadd.config.settings import Settings

log = get_logger(__name__)

_RAW_BYTES: Final = 120 * 2**10
"""Bytes of one read, at most: a POST of 64 KiB with its head, as without TLS."""
_FEW_BYTES: Final = 8 * 2**10
"""A caller that wants no more bytes than these may have no memory for more (see
``RequestMemory.read_ahead``)."""
_FEW_RAW_BYTES: Final = 25 * 2**10
"""Bytes of one read for such a caller: these, and the rest of a record (RFC 8446, section 5.2)."""
_MOST_UNREAD: Final = 64 * 2**10
"""Unsent bytes of the replies of OpenSSL to one client, at most. In TLS 1.3 a client can request
key updates without end and read no reply."""


_NAMES: Final = ("commonName", "DNS")
_PEM_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


class Certificates:
    """The files TLS_CERT, TLS_KEY and TLS_CLIENT_CA, and the TLS context made from them."""

    trust = 0
    """The number of reloads that removed a certificate from TLS_CLIENT_CA. Connections that were
    accepted before the last of them have to end."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        """Read the files; raises SettingsError if they cannot be used."""
        self._files = certificate, key, client_ca
        try:
            self.context, self._authorities = self._load()
        except (OSError, ssl.SSLError) as error:
            raise SettingsError([tls_problem(certificate, key, client_ca, error)]) from None

    def reload(self) -> None:
        """Read the files again for new connections.

        If they cannot be used, log ``tls_not_reloaded`` and keep the current context. Connections
        that are open keep their context.
        """
        try:
            self.context, authorities = self._load()
        except (OSError, ssl.SSLError) as error:
            log.error("tls_not_reloaded", reason=tls_problem(*self._files, error))  # noqa: TRY400 - the file is wrong, not the code
            return
        removed = len(self._authorities - authorities)
        if removed:
            self.trust += 1
        self._authorities = authorities
        log.info("tls_reloaded", client_authorities_removed=removed)

    def _load(self) -> tuple[ssl.SSLContext, frozenset[bytes]]:
        """Return a context, and the authorities that may have signed a client's certificate."""
        certificate, key, client_ca = self._files
        # TLS 1.2 and newer, and the ciphers that Python considers strong.
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        # Without ``password``, OpenSSL would ask for a key's passphrase on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: b"")
        context.set_alpn_protocols(["h2", "http/1.1"])
        # A client that reconnects uses one ticket (RFC 8446, section 4.6.1); OpenSSL would send
        # two. OpenSSL makes the key of the tickets for each context: it is never on a disk, no
        # other process knows it, and a reload replaces it.
        context.num_tickets = 1
        if client_ca is None:
            return context, frozenset()
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
        return context, _pem_blocks(client_ca.read_bytes())


def _pem_blocks(text: bytes) -> frozenset[bytes]:
    """Return the blocks of a PEM file, without white space and without the text between them.

    Rejected alternative: ``SSLContext.get_ca_certs`` omits a trusted certificate that is not a
    certificate authority's.
    """
    return frozenset(b"".join(block[0].split()) for block in _PEM_BLOCK.finditer(text))


def open_certificates(settings: Settings) -> Certificates | None:
    """Return the certificates that the settings name, None without TLS; raises SettingsError."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return Certificates(settings.tls_cert, settings.tls_key, settings.tls_client_ca)


class TlsStream(NonBlockingStream):
    """The bytes of one socket, encrypted with ``context``; call ``handshake`` first."""

    __slots__ = (
        "_close_sent", "_ended", "_incoming", "_outgoing", "_tls", "handshake_bytes", "has_replied",
    )  # fmt: skip

    buffers: ClassVar = True

    def __init__(self, connected: socket.socket, context: ssl.SSLContext) -> None:
        """Act as the server side of TLS on a connected socket, which must not block."""
        super().__init__(connected)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._ended = False
        """Whether the input has ended, by close_notify or by the end of the socket's input."""
        self._close_sent = False
        self.handshake_bytes = 0
        """Bytes of the handshake that have arrived."""
        self.has_replied = False
        """Whether a part of the handshake was sent."""

    def receive_handshake(self) -> bool:
        """Read a part of the handshake; return False if there is none yet.

        Raises ``trio.BrokenResourceError`` if the client has left.
        """
        data = super().receive_now(_RAW_BYTES)
        if data is None:
            return False
        if not data:
            raise trio.BrokenResourceError("the client left during the handshake")
        self.handshake_bytes += len(data)
        self._incoming.write(data)
        return True

    def continue_handshake(self) -> bool:
        """Process the received part and send the reply; return whether the handshake is over.

        A signature takes up to a millisecond. Raises ``trio.BrokenResourceError`` if the client
        does not speak TLS, or has no certificate that TLS_CLIENT_CA accepts.
        """
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise trio.BrokenResourceError(str(error)) from error
        finally:
            self.has_replied |= self._outgoing.pending > 0
            self._send_records()
        return True

    @property
    def protocol(self) -> str | None:
        """The protocol that was agreed on in the handshake (ALPN, RFC 7301)."""
        return self._tls.selected_alpn_protocol()

    @property
    def certificate_name(self) -> str | None:
        """The name in the client's certificate, None without a certificate or a name.

        It is the common name of the subject, else the first DNS name (RFC 5280, section 4.2.1.6).
        """
        certificate: Any = self._tls.getpeercert() or {}
        subject = (pair for names in certificate.get("subject", ()) for pair in names)
        pairs = (*subject, *certificate.get("subjectAltName", ()))
        return next((text for kind, text in pairs if kind in _NAMES and text), None)

    @property
    def pending(self) -> bool:
        """Whether records, or the end of the input, are there that the socket does not announce."""
        return self._ended or self._incoming.pending > 0 or self._tls.pending() > 0

    async def receive_some(self, max_bytes: int) -> bytes:
        """Wait for data and return up to ``max_bytes`` of it; b"" at the end of the input."""
        # Yield even if data is there: a client that sends quickly must not block the others.
        await trio.lowlevel.checkpoint()
        while (data := self.receive_now(max_bytes)) is None:
            await self._wait_readable()
        return data

    def receive_now(self, max_bytes: int) -> bytes | None:
        """Return received data, b"" at the end of the input, None if there is none yet.

        The input ends with the client's close_notify or with the end of the socket's input: the
        Content-Length shows whether a request was cut off. This is no checkpoint.
        """
        if self._close_sent:
            return super().receive_now(max_bytes)
        found = b""
        incoming, tls = self._incoming, self._tls
        while len(found) < max_bytes and not self._ended:
            # An exception costs more than these two calls.
            if not (incoming.pending or tls.pending()):
                # If the socket has more than one read returns, it stays readable.
                if found or not self._fetch(few=max_bytes <= _FEW_BYTES):
                    break
                continue
            try:
                piece = tls.read(max_bytes - len(found))
                self._ended = not piece  # close_notify
                found = found + piece if found else piece
            except ssl.SSLWantReadError:
                if found or not self._fetch(few=max_bytes <= _FEW_BYTES):
                    break
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                self._ended = True
            except ssl.SSLError as error:
                raise trio.BrokenResourceError(str(error)) from error
        self._answer_records()
        return found if found or self._ended else None

    def _fetch(self, *, few: bool) -> bool:
        """Pass received bytes to OpenSSL; return False if there are none yet."""
        data = super().receive_now(_FEW_RAW_BYTES if few else _RAW_BYTES)
        if data == b"":
            self._ended = True
        elif data is not None:
            self._incoming.write(data)
        return data is not None

    def send_now(self, data: bytes) -> bool:
        """Send as much of ``data`` as there is room for (see ``NonBlockingStream``)."""
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise trio.BrokenResourceError(str(error)) from error
        return self._send_records()

    def send_close(self) -> None:
        """Send close_notify (RFC 8446, section 6.1), if there is room for it.

        Later input is returned without decryption.
        """
        if self._close_sent:
            return
        # This fails if the client has not sent its own close_notify, or has sent data instead.
        with suppress(ssl.SSLError):
            self._tls.unwrap()
        self._close_sent = True
        self._send_records()

    def _answer_records(self) -> None:
        """Send the replies of OpenSSL to the records that it has read; it only writes to memory."""
        if self._outgoing.pending:
            self._send_records()
            if len(self._unsent) > _MOST_UNREAD:
                raise trio.BrokenResourceError("the client does not read the replies of TLS")

    def _send_records(self) -> bool:
        """Send the records that OpenSSL has written, after the bytes that had no room before."""
        return super().send_now(self._unsent + self._outgoing.read())
