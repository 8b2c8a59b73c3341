"""The answer to an accepted request, and the end of a connection with an unread body."""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from payloadd.ingress import problem
from payloadd.ingress.preferences import receipt_document
from payloadd.ingress.problem import Problem
from payloadd.ingress.submission import PostHeaders, Submitter
from payloadd.pipeline.intake import Receipt
from tests.ingress.rig import SOON, Rig, Wire, post, running

if TYPE_CHECKING:
    from tests.ingress.conftest import Refusal


INNER = post(b'{"payloads":["smuggled"]}')
"""A body that is a request itself."""


@given(st.integers(0, 2**128 - 1), st.integers(0, 10**9))
def test_the_answer_contains_the_id_as_a_uuid(number: int, payloads: int) -> None:
    """The id is formatted without ``str(uuid)``, and must be equal to it."""
    receipt = Receipt(uuid.UUID(int=number), payloads)
    assert json.loads(receipt_document(receipt)) == {"id": str(receipt.id), "accepted": payloads}


async def send_in_parts(wire: Wire, data: bytes, first: int, status: int) -> None:
    """Send ``first`` bytes, expect an answer that ends the connection, and send the rest."""
    await wire.send(data[:first])
    answer = await wire.answer()
    assert (answer.status, answer.headers["connection"]) == (status, "close")
    with suppress(trio.BrokenResourceError):  # the server may have closed the connection already
        await wire.send(data[first:])
        assert await wire.rest() == b""


async def smuggle(rig: Rig, outer: bytes, status: int) -> None:
    """Send a request whose body is a request, with its body sent whole, in part, and later."""
    start = outer.index(b"\r\n\r\n") + 4
    for first in (len(outer), start + 10, start):
        with trio.fail_after(SOON):
            async with rig.wire() as wire:
                await send_in_parts(wire, outer, first, status)
    assert rig.intake.taken == []


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("code", problem.KINDS)
async def test_a_body_is_never_read_as_a_request_after_a_refusal(
    code: str, monkeypatch: pytest.MonkeyPatch, refusals: list[Refusal]
) -> None:
    """A client could smuggle a request past a proxy that checks requests."""

    def refuse(_self: Submitter, _headers: PostHeaders, *_client: object) -> None:
        raise Problem(code, "refused by a test")

    monkeypatch.setattr(Submitter, "check", refuse)
    async with running() as rig:
        await smuggle(rig, post(INNER), Problem(code, "").status)
    refusals.clear()  # other operations have some of these codes


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200), ("GET", "/nothing", 404), ("POST", "/nothing", 404),
        ("PATCH", "/v1/payloads", 405), ("POST", "/healthz", 405),
        ("OPTIONS", "/v1/payloads", 204),
    ],
)  # fmt: skip
async def test_a_body_is_never_read_as_a_request_after_an_answer_without_it(
    method: str, path: str, status: int
) -> None:
    """The same for requests whose body has no meaning."""
    outer = post(INNER, path=path).replace(b"POST", method.encode(), 1)
    async with running() as rig:
        await smuggle(rig, outer, status)


@pytest.mark.usefixtures("each_way")
async def test_a_connection_serves_requests_after_a_refused_body_that_was_read() -> None:
    """A client with one wrong document would need a new connection for each request."""
    async with running(MAX_PAYLOADS="1") as rig, rig.wire() as wire:
        for body, status in ((b"[", 400), (b"{}", 422), (b'{"payloads":[1,2]}', 413)):
            await wire.send(post(body))
            answer = await wire.answer()
            assert answer.status == status
            assert "connection" not in answer.headers
        await wire.send(post(b'{"payloads":[1]}'))
        assert (await wire.answer()).status == 202


@pytest.mark.usefixtures("each_way")
async def test_a_refused_request_without_a_body_keeps_its_connection() -> None:
    """A connection would end although nothing of the request is unread."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(post(b"", "Content-Type: text/html"))
        answer = await wire.answer()
        assert (answer.status, "connection" in answer.headers) == (415, False)
        await wire.send(post())
        assert (await wire.answer()).status == 202
