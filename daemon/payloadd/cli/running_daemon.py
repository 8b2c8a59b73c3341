"""Ask a running daemon for its troubles, over its admin address."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Final

import httpx
import trio

from payloadd.config.parsers import TcpAddress, UnixAddress

if TYPE_CHECKING:
    from payloadd.config.settings import Settings

_SECONDS: Final = 3.0


async def status_of_daemon(settings: Settings) -> dict[str, Any] | None:
    """Return the document of ``/status.json``, or None if no payloadd answers on ADMIN_BIND."""
    address = settings.admin_bind
    if address is None:
        return None
    socket = address.path if isinstance(address, UnixAddress) else None
    # No proxy and no certificates: the address is on this machine, and has no TLS.
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    transport = httpx.AsyncHTTPTransport(uds=socket, verify=tls)
    host = str(address) if isinstance(address, TcpAddress) else "localhost"
    with trio.move_on_after(_SECONDS):
        try:
            async with httpx.AsyncClient(transport=transport, timeout=_SECONDS) as client:
                document = (await client.get(f"http://{host}/status.json")).json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError):
            return None
        known = isinstance(document, dict) and "troubles" in document and "process" in document
        return document if known else None
    return None


def status_notes(document: dict[str, Any]) -> list[str]:
    """Return what is wrong with a daemon, by the document of its ``/status.json``."""
    notes = []
    if refusal := document.get("refusal"):
        notes.append(f"refuses requests: {refusal['code']}, {refusal['detail']}")
    for trouble in document["troubles"]:
        code, reason = trouble["code"], trouble["reason"]
        # The reason of a trouble of the store begins with its code.
        text = reason if reason.startswith(code) else f"{code}: {reason}"
        notes.append(f"trouble of the {trouble['part']}: {text}")
    return notes
