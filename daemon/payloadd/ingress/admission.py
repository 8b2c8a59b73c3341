"""Decide which client has sent a request, and whether it may be accepted.

A client has a name if it has a token (AUTH_TOKENS), or a certificate (TLS_CLIENT_CA). Other clients
are told apart by their address, which a trusted proxy may state (TRUSTED_PROXIES, CLIENT_ADDRESS).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from payloadd.config.stream_names import DEFAULT_STREAM
from payloadd.ingress.auth import TokenFile, forbidden
from payloadd.ingress.client_address import client_address
from payloadd.ingress.rate_limit import RateLimiter

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.config.settings import Settings


class Admission:
    """The checks of clients that the settings ask for."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the tokens; ``clock`` returns seconds. Raises SettingsError."""
        path = settings.auth_tokens
        known = frozenset((DEFAULT_STREAM, *(settings.streams or ())))
        self._tokens = None if path is None else TokenFile(path, known)
        rate = settings.rate_limit
        self._limiter = None if rate is None else RateLimiter(rate, clock)
        # A PROXY header has replaced the address of the peer before the first request.
        header = settings.client_address
        self._header = None if header == "proxy" else header
        self._proxies = settings.trusted_proxies

    @property
    def needs_tokens(self) -> bool:
        """Whether each POST needs a token."""
        return self._tokens is not None

    @property
    def behind_proxies(self) -> bool:
        """Whether proxies state the addresses of clients in a header of each request."""
        return self._header is not None

    @property
    def tokens(self) -> TokenFile | None:
        """The tokens of clients; None without AUTH_TOKENS."""
        return self._tokens

    def reload(self) -> None:
        """Read the tokens again (see ``TokenFile.reload``)."""
        if self._tokens is not None:
            self._tokens.reload()

    def admit(
        self,
        token: bytes | None,
        certificate_name: str | None,
        address: Callable[[], str | None],
        stream: str,
    ) -> str | None:
        """Return the name of the client, None if it has none.

        ``token`` is the digest of the client's token (see ``token_digest``), ``certificate_name``
        the name in its certificate, ``address`` returns its address, and ``stream`` is the name of
        the stream that the request is for. Raises Problem: UNAUTHENTICATED, FORBIDDEN,
        RATE_LIMITED.
        """
        name = certificate_name
        if self._tokens is not None:
            client = self._tokens.authenticate(token)
            name = client.name
            if client.streams is not None and stream not in client.streams:
                raise forbidden(client.streams)
        if self._limiter is not None:
            self._limiter.count(name or address() or "")
        return name

    def client_address(self, peer: str, x_forwarded_for: str | None, forwarded: str | None) -> str:
        """Return the address of the client behind ``peer``, which may be a trusted proxy.

        The other arguments are headers.
        """
        if self._proxies is None or self._header is None:
            return peer
        stated = forwarded if self._header == "forwarded" else x_forwarded_for
        return client_address(peer, stated, self._header, self._proxies)


def open_admission(settings: Settings) -> Admission | None:
    """Return the checks of clients, None if no setting asks for one. Raises SettingsError."""
    asked = (
        settings.auth_tokens,
        settings.tls_client_ca,
        settings.rate_limit,
        settings.trusted_proxies,
    )
    return Admission(settings) if any(one is not None for one in asked) else None
