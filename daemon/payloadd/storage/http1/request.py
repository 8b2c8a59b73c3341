"""A request for httpx's transports whose head is written already."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import httpx

from payloadd.storage.http1.connection import WireRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from payloadd.storage.http1.body import PieceBody


class WrittenRequest(httpx.Request):
    """What ``httpx.Request`` is, made from request line and headers as they are sent.

    To have httpx take them apart and to join them again was 6 % of a small object. Who
    knows this class sends ``wire``; for who does not, ``headers`` are read out of it.
    """

    def __init__(
        self,
        method: str,
        url: httpx.URL,
        target: bytes,
        headers: bytes,
        body: PieceBody,
        timeout: Mapping[str, float | None],
    ) -> None:
        """Ask the server of ``url`` for ``target``, which goes out as it is.

        ``headers`` are whole lines, Host and Content-Length among them. Nothing is checked: who
        calls sees to it that no part of a line has a line break in it.
        """
        self.method = method
        self.url = url
        self.wire = WireRequest(
            method,
            b"%b %b HTTP/1.1\r\n%b\r\n" % (method.encode("ascii"), target, headers),
            body.pieces,
            timeout["write"],
            timeout["read"],
        )
        self.stream = body
        # httpx would take `.` and `..` out of a path, and S3 keys may have them.
        self.extensions = {"target": target, "timeout": timeout}

    @cached_property
    def headers(self) -> httpx.Headers:  # type: ignore[override]  # httpx sets it
        """The headers, in the form of httpx."""
        lines = self.wire.head.split(b"\r\n")[1:-2]
        parts = [line.partition(b": ") for line in lines]
        return httpx.Headers([(name, text) for name, _, text in parts])
