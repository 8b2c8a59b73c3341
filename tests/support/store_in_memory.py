"""An S3 store whose server is in the same process, without sockets: time can be virtual."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final
from unittest.mock import patch
from urllib.parse import unquote

import httpx
import trio

from payloadd.config.parsers import S3Url
from payloadd.config.settings import load
from payloadd.storage.http1.request import PreparedRequest
from payloadd.storage.http1.response import ResponseParser
from payloadd.storage.http1.transport import TrioTransport
from payloadd.storage.s3.credentials import find_access
from payloadd.storage.s3.sigv4 import Keys
from payloadd.storage.s3.store import S3Store
from tests.support.store import render
from tests.support.store_behaviours import Cut, Hang, Request

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.store import FakeS3


_KEYS: Final = Keys("fake", "fake-secret")


class FixedCredentials:
    """Keys that never change. Virtual time must not wait for the thread that reads others."""

    def expire(self) -> float | None:
        """Return None: they do not expire."""
        return None

    def held(self) -> Keys:
        """Return the keys."""
        return _KEYS

    async def get(self) -> Keys:
        """Return the keys."""
        return _KEYS

    async def renew(self, refused: Keys) -> bool:
        """Return False: there are no other keys."""
        del refused
        return False

    async def reload(self) -> bool:
        """Return False: there are no other keys."""
        return False

    def close(self) -> None:
        """Do nothing."""


async def store_in_memory(fake: FakeS3, **environ: str) -> S3Store:
    """Return a store whose requests ``fake`` answers at once."""
    settings = load({**fake.environ, **environ})
    assert isinstance(settings.store_url, S3Url)
    access = replace(await find_access(settings), credentials=FixedCredentials())
    store = S3Store(settings, settings.store_url, access)
    transport = store._sender._client._transport
    assert isinstance(transport, TrioTransport)

    async def exchange(request: httpx.Request) -> ResponseParser:
        assert isinstance(request, PreparedRequest)
        await trio.lowlevel.checkpoint()
        seen = _request_of(request)
        reaction, reply = fake.answer(seen)
        if isinstance(reaction, Hang):
            await trio.sleep_forever()
        if isinstance(reaction, Cut):
            raise httpx.ReadError("reset")
        assert reply is not None
        response = ResponseParser(request.method)
        response.feed(render(reply, method=request.method))
        return response

    patch.object(transport, "exchange", exchange).start()
    return store


def _request_of(request: PreparedRequest) -> Request:
    head = request.wire.head.decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ")
    headers = dict(_pairs(head[1:-2]))
    path = unquote(target.partition("?")[0])
    return Request(method, path, headers, b"".join(request.wire.body))


def _pairs(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, _, text = line.partition(": ")
        yield name, text
