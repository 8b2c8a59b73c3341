"""HTTP clients and ports for tests on 127.0.0.1."""

from __future__ import annotations

import socket
import ssl

import httpx


def http_client(
    connections: int = 10, timeout: float = 60.0, *, http2: bool = False
) -> httpx.AsyncClient:
    """Return a client without proxies; it loads no certificates, which is slow.

    ``http2``: it speaks nothing else.
    """
    return httpx.AsyncClient(
        http1=not http2,
        http2=http2,
        trust_env=False,
        timeout=timeout,
        verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
    )


def free_port() -> int:
    """Return a port that was free during the call."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
