"""Streams in the paths of requests, as clients see them, on both ways in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from payloadd.ingress.routes import Routes, Stream, unknown_stream
from tests.ingress.rig import COLLECTION, SOON, post, running

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from hypercorn.trio.tcp_server import TCPServer

TYPE = "Content-Type: application/json"
both_ways = pytest.mark.usefixtures("each_way")


@both_ways
@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize(
    ("path", "streams", "document"),
    [
        ("/v1/payloads", 0, False),
        ("/v1/payloads/default", 0, False),
        ("/v1/payloads/clicks", 1, False),
        ("/v1/payloads/a_b-c", 2, False),
        ("/v1/payload/clicks", 1, True),
        ("/v1/payload/default/", 0, True),
    ],
)
async def test_the_path_names_the_stream(
    method: str,
    path: str,
    streams: int,
    document: bool,  # noqa: FBT001 - pytest passes it by name
    handed_over: list[TCPServer],
) -> None:
    """Payloads would be stored among those of another stream."""
    async with running(STREAMS="clicks,a_b-c") as rig, rig.client() as client:
        for target in (path, path.rstrip("/") + "/"):
            answer = await client.request(
                method, target, headers={"Content-Type": "application/json"}, content=COLLECTION
            )
            assert answer.status_code == 202, answer.text
        assert rig.intake.streams == [streams] * 2
        assert [len(taken) for taken in rig.intake.taken] == [1 if document else 2] * 2
        assert len(handed_over) == (rig.fast_path is None)


@both_ways
async def test_streams_alternate_on_one_connection() -> None:
    """A cache of heads or routes would give a request the stream of the one before."""
    order = [0, 1, 2, 2, 1, 0, 1, 1, 2, 0]
    async with running(STREAMS="clicks,errors") as rig, rig.wire() as wire:
        for number in order:
            name = ("default", "clicks", "errors")[number]
            await wire.send(post(path=f"/v1/payloads/{name}"))
            assert (await wire.answer()).status == 202
        assert rig.intake.streams == order


@both_ways
async def test_a_percent_encoded_name_is_the_same_stream() -> None:
    """A client whose library encodes more than it has to would be refused."""
    async with running(STREAMS="a_b-c") as rig:
        for path in ("/v1/payloads/a%5Fb%2Dc", "/v1/payloads/%61_b-c/", "/v1/payload%73/a_b-c"):
            async with rig.wire() as wire:
                await wire.send(post(path=path))
                assert (await wire.answer()).status == 202
        for path in ("/v1/payloads%2Fa_b-c", "/v1/payloads/a_b-c%2f", "//v1/payloads/a_b-c"):
            async with rig.wire() as wire:
                await wire.send(post(path=path))
                assert (await wire.answer()).document["code"] == "NOT_FOUND"
        assert rig.intake.streams == [1, 1, 1]


@both_ways
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("clocks", "there is no stream 'clocks'; to add it, the operator lists it in STREAMS"),
        ("CLICKS", "no stream can have this name (1 to 63 of a-z"),
        ("x" * 64, "no stream can have this name"),
        ("%E2%80%AE%0A%00%22", "no stream '\\u202e\\n\\x00"),
        ("x" * 3000, f"'{'x' * 80}'"),
    ],
)
async def test_an_unknown_stream_is_refused_before_the_body(
    name: str, words: str, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """A client would send a large body in vain, and not learn what is wrong."""
    head = f"POST /v1/payloads/{name} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n"
    async with running(STREAMS="clicks") as rig:
        async with rig.wire() as wire:
            await wire.send(head.encode())
            with trio.fail_after(SOON):
                answer = await wire.answer()
        assert (answer.status, answer.document["code"]) == (404, "UNKNOWN_STREAM")
        assert answer.headers["connection"] == "close"
        assert words in answer.document["detail"]
        assert len(answer.document["detail"]) < 300
        assert rig.counted(404) == 1
    assert [line["code"] for line in log_lines] == ["UNKNOWN_STREAM"]


@both_ways
async def test_a_page_can_read_why_its_stream_is_refused() -> None:
    """A browser would hide the 404 after a preflight that failed."""
    origin = "https://shop.example"
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    async with running(STREAMS="clicks", CORS_ORIGINS=origin) as rig, rig.client() as client:
        for name, status in (("clicks", 202), ("clocks", 404)):
            answer = await client.options(f"/v1/payloads/{name}", headers=headers)
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (
                204,
                origin,
            )
            answer = await client.post(
                f"/v1/payloads/{name}",
                headers={**headers, "Content-Type": "text/plain"},
                content=b"[1]",
            )
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (
                status,
                origin,
            )


@both_ways
async def test_a_large_body_keeps_its_stream() -> None:
    """The process for large bodies would put it into the default stream."""
    large = b'{"payloads":["%s"]}' % (b"x" * 600_000)
    async with running(STREAMS="clicks") as rig, rig.wire() as wire:
        await wire.send(post(large, TYPE, "Idempotency-Key: k", path="/v1/payloads/clicks"))
        assert (await wire.answer()).status == 202
        assert (rig.intake.streams, rig.intake.keys) == ([1], ["\0clicks\0k"])


def test_the_table_has_all_first_lines() -> None:
    """A thousand streams would not all be served by the fast path."""
    routes = Routes({"default": 0} | {f"s{number}": number for number in range(1, 1000)})
    assert len(routes.first_lines) == 8 * 1001
    assert routes.first_lines[b"PUT /v1/payload/s7/ HTTP/1.1\r\n"] == (True, ("s7", 7))
    assert routes.stream("nope") == Stream("nope", -1)


def test_an_odd_name_is_shown_escaped_and_cut() -> None:
    """A client could write lines of its own into the log."""
    detail = unknown_stream("a\n\x1b[31m" + "b" * 500).detail
    assert "\n" not in detail
    assert "\x1b" not in detail
    assert len(detail) < 250
