"""The body of a request in Quart, message by message."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from payloadd.ingress.asgi import ClientLeftError, IncomingMessages
from tests.ingress.rig import post, running


def body_of(*messages: dict[str, Any]) -> IncomingMessages:
    """Return the body that arrives in these messages."""
    left = iter(messages)

    async def receive() -> Any:  # noqa: ANN401 - of ASGI
        await trio.lowlevel.checkpoint()
        return next(left)

    body = IncomingMessages()
    body.receive = receive
    return body


def part(data: bytes, *, more: bool) -> dict[str, Any]:
    """Return a message with a part of a body."""
    return {"type": "http.request", "body": data, "more_body": more}


async def test_a_body_ends_with_its_last_message() -> None:
    """A handler would wait for a message that never comes."""
    body = body_of(part(b"a", more=True), part(b"b", more=False))
    assert [piece async for piece in body] == [b"a", b"b"]
    assert [piece async for piece in body] == []


async def test_a_body_whose_client_leaves_is_not_complete() -> None:
    """Half of a collection would be accepted."""
    body = body_of(part(b"a", more=True), {"type": "http.disconnect"})
    with pytest.raises(ClientLeftError):
        [piece async for piece in body]


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("host", ["a" * 70, "a..b", "x:80", "[::1]:443"])
async def test_the_host_of_a_request_decides_nothing(host: str) -> None:
    """A host that is no name of IDNA would end in an internal error."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(post().replace(b"Host: here", b"Host: " + host.encode()))
        assert (await wire.answer()).status == 202
