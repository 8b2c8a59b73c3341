"""Browsers on pages of other origins (CORS_ORIGINS), on both ways in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.ingress.rig import COLLECTION, post, running

if TYPE_CHECKING:
    from tests.ingress.rig import Answer

pytestmark = pytest.mark.usefixtures("each_way")

JSON = "Content-Type: application/json"
HERE = "https://shop.example"
THERE = "https://elsewhere.example"
ORIGINS = f"{HERE}, http://127.0.0.1:9"


def shown_to(answer: Answer, origin: str = HERE) -> bool:
    """Return whether a browser shows the answer to a page of ``origin``, with credentials."""
    headers = answer.headers
    assert headers["vary"] == "origin"
    allowed = headers.get("access-control-allow-origin")
    assert (headers.get("access-control-allow-credentials") == "true") is (allowed is not None)
    return allowed == origin


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (post(COLLECTION, JSON, f"Origin: {HERE}"), 202),
        (post(COLLECTION, JSON, f"Origin: {HERE}", path="/v1/payload/"), 202),
        (post(b"{}", JSON, f"Origin: {HERE}"), 422),
        (post(b"{}", JSON, f"Origin: {HERE}", path="/nowhere"), 404),
        (post(b"", "Content-Type: text/html", f"Origin: {HERE}"), 415),
        (post(COLLECTION, JSON, f"Origin: {HERE}", "Content-Encoding: br"), 415),
        (f"GET /v1/payloads HTTP/1.1\r\nHost: x\r\nOrigin: {HERE}\r\n\r\n".encode(), 405),
        (f"GET /healthz HTTP/1.1\r\nHost: x\r\nOrigin: {HERE}\r\n\r\n".encode(), 200),
    ],
)
async def test_every_answer_is_shown_to_pages_of_a_listed_origin(sent: bytes, status: int) -> None:
    """A page would learn neither that its payloads are safe, nor what is wrong with them."""
    async with running(CORS_ORIGINS=ORIGINS) as rig:
        async with rig.wire() as wire:
            await wire.send(sent)
            answer = await wire.answer()
            assert (answer.status, shown_to(answer)) == (status, True)
            assert "retry-after" in answer.headers["access-control-expose-headers"]
        async with rig.wire() as wire:
            await wire.send(sent.replace(HERE.encode(), THERE.encode()))
            answer = await wire.answer()
            assert (answer.status, shown_to(answer)) == (status, False)
            assert "access-control-allow-origin" not in answer.headers


async def test_answers_before_the_body_are_shown_too() -> None:
    """A page would take a rate limit for a failure of the network."""
    async with running(CORS_ORIGINS=ORIGINS, RATE_LIMIT="1/m") as rig:
        for status in (202, 429):
            async with rig.wire() as wire:
                await wire.send(post(COLLECTION, JSON, f"Origin: {HERE}"))
                answer = await wire.answer()
                assert (answer.status, shown_to(answer)) == (status, True)


HEAD = f"POST /v1/payloads HTTP/1.1\r\nHost: a\r\n{JSON}\r\nOrigin: {HERE}\r\n".encode()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (HEAD, 408),
        (HEAD + b"Content-Length: 9\r\n\r\n", 408),
        (HEAD + b"Host: b\r\n\r\n", 400),
        (HEAD + b"no header\r\n\r\n", 400),
        (HEAD + b"X: " + b"x" * 17_000, 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nno chunk\r\n", 400),
    ],
)
async def test_answers_to_requests_that_are_not_parsed_are_shown_too(
    sent: bytes, status: int
) -> None:
    """A page would take a timeout, or a head that is too large, for a failure of the network."""
    async with running(CORS_ORIGINS=ORIGINS, REQUEST_TIMEOUT="0.3s") as rig:
        for origin, shown in ((HERE, True), (THERE, False)):
            async with rig.wire() as wire:
                await wire.send(sent.replace(HERE.encode(), origin.encode()))
                answer = await wire.answer()
                assert (answer.status, shown_to(answer)) == (status, shown)


async def test_an_answer_to_an_unknown_origin_is_shown_to_none() -> None:
    """The origin of the request before could read the answer."""
    async with running(CORS_ORIGINS=ORIGINS) as rig, rig.wire() as wire:
        await wire.send(f"GET /healthz HTTP/1.1\r\nHost: x\r\nOrigin: {HERE}\r\n\r\n".encode())
        assert shown_to(await wire.answer())
        await wire.send(b"no HTTP\r\n\r\n")
        assert not shown_to(await wire.answer())


async def test_a_preflight_is_answered() -> None:
    """A browser sends no JSON before it."""
    headers = {
        "Origin": HERE,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    async with running(CORS_ORIGINS=ORIGINS) as rig, rig.client() as client:
        answer = await client.options("/v1/payloads", headers=headers)
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer.headers["access-control-allow-origin"] == HERE
        assert "POST" in answer.headers["access-control-allow-methods"]
        allowed = set(answer.headers["access-control-allow-headers"].split(", "))
        assert {"content-type", "content-encoding", "idempotency-key", "authorization"} <= allowed
        assert int(answer.headers["access-control-max-age"]) == 7200
        assert "content-type" not in answer.headers or not answer.content
        answer = await client.options("/v1/payloads", headers={**headers, "Origin": THERE})
        assert "access-control-allow-origin" not in answer.headers
        assert "access-control-allow-methods" not in answer.headers


async def test_all_origins_are_allowed_without_credentials() -> None:
    """Browsers refuse an answer that allows both."""
    async with running(CORS_ORIGINS="*") as rig, rig.wire() as wire:
        for body, status in ((COLLECTION, 202), (b"{}", 422)):
            await wire.send(post(body, JSON, f"Origin: {THERE}"))
            answer = await wire.answer()
            assert answer.status == status
            assert answer.headers["access-control-allow-origin"] == "*"
            assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("kind", ["text/plain", "text/plain;charset=UTF-8", "Text/Plain; x=y"])
async def test_a_text_is_read_as_json(kind: str) -> None:
    """`navigator.sendBeacon` with a text can send no other type."""
    sent = post(COLLECTION, f"Content-Type: {kind}", f"Origin: {HERE}")
    large = post(b'{"payloads":["%s"]}' % (b"x" * 600_000), f"Content-Type: {kind}")
    async with running(CORS_ORIGINS=ORIGINS) as rig, rig.wire() as wire:
        for each in (sent, large):
            await wire.send(each)
            assert (await wire.answer()).status == 202
        assert len(rig.intake.taken) == 2


async def test_without_the_setting_nothing_changes() -> None:
    """Every page in the world could post, or servers would get headers that they do not need."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(post(COLLECTION, JSON, f"Origin: {HERE}"))
        answer = await wire.answer()
        assert answer.status == 202
        assert not {"vary", "access-control-allow-origin"} & answer.headers.keys()
        await wire.send(post(COLLECTION, "Content-Type: text/plain"))
        assert (await wire.answer()).status == 415
