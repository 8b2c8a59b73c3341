"""The body of a request in Quart, message by message."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import trio

from payloadd.ingress import asgi
from payloadd.ingress.admin import make_admin_app
from payloadd.ingress.api import make_app
from payloadd.ingress.asgi import ClientLeftError, IncomingMessages
from payloadd.ingress.refusal_log import RefusalLog
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


OVERRIDDEN = [
    (own, name)
    for own in vars(asgi).values()
    if inspect.isclass(own) and own.__module__ == asgi.__name__ and own.__base__ is not object
    for name in vars(own)
    if not (name.startswith("__") or name == "_adapter")
]


@pytest.mark.parametrize(
    ("own", "name"),
    [pytest.param(*each, id=f"{each[0].__name__}.{each[1]}") for each in OVERRIDDEN],
)
def test_each_override_has_its_counterpart_in_quart(own: type, name: str) -> None:
    """A new version of Quart would call another method, and do all that the app omits."""
    ours, theirs = getattr(own, name), getattr(own.__base__, name)
    if inspect.isfunction(ours):
        ours, theirs = (len(inspect.signature(each).parameters) for each in (ours, theirs))
        assert ours == theirs


async def test_the_apps_use_nothing_that_is_omitted() -> None:
    """A function before each request, such as a check of a token, would never be called."""
    async with running() as rig:
        assert rig.submitter is not None
        for app in (
            make_app(rig.submitter, rig.health, RefusalLog(), rig.settings),
            make_admin_app(rig.intake, rig.health, rig.metrics, rig.settings),
        ):
            assert isinstance(app, asgi.App)
            assert not any(app.before_request_funcs.values())
            assert not any(app.url_value_preprocessors.values())
            assert not app.blueprints
