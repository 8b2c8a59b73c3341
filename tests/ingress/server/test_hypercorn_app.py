"""The app behind Hypercorn: HTTP/2, and the answers that are counted and logged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
import trio
import trio.testing
from quart_trio import QuartTrio

from tests.ingress.rig import COLLECTION, ID, SOON, Wire, post, running

if TYPE_CHECKING:
    from collections.abc import MutableMapping


pytestmark = pytest.mark.usefixtures("each_way")

HEAD = b"POST /v1/payloads HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


# --- HTTP/2 --------------------------------------------------------------------------------------


class Http2:
    """A client that speaks HTTP/2 from the first byte."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.connection.initiate_connection()

    async def request(self, body: bytes) -> tuple[dict[bytes, bytes], bytes]:
        """Post ``body``; return the headers and the body of the answer."""
        stream = self.connection.get_next_available_stream_id()
        head = [(":method", "POST"), (":path", "/v1/payloads"), (":scheme", "http")]
        head += [(":authority", "here"), ("content-type", "application/json")]
        self.connection.send_headers(stream, head)
        for start in range(0, len(body), 16384):
            self.connection.send_data(stream, body[start : start + 16384])
        self.connection.end_stream(stream)
        headers: dict[bytes, bytes] = {}
        out = b""
        while True:
            await self.wire.send(self.connection.data_to_send())
            data = await self.wire.stream.receive_some()
            if not data:
                raise trio.EndOfChannel
            for event in self.connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    headers = dict(event.headers)
                elif isinstance(event, h2.events.DataReceived):
                    out += event.data
                elif isinstance(event, h2.events.StreamEnded):
                    return headers, out


async def test_http2_with_prior_knowledge_is_served() -> None:
    """A client that knows HTTP/2 would run into the time limits of HTTP/1.1."""
    async with (
        running(REQUEST_TIMEOUT="300ms", KEEPALIVE_TIMEOUT="5s") as rig,
        rig.wire() as wire,
    ):
        client = Http2(wire)
        headers, body = await client.request(COLLECTION)
        assert headers[b":status"] == b"202"
        assert str(ID).encode() in body
        await trio.sleep(0.5)  # longer than REQUEST_TIMEOUT, shorter than KEEPALIVE_TIMEOUT
        rig.health.phase = "draining"
        headers, body = await client.request(b"{}")
        assert headers[b":status"] == b"422"
        assert b"NOT_A_COLLECTION" in body


async def test_an_idle_http2_connection_is_closed() -> None:
    """Inactive HTTP/2 clients would hold all slots."""
    async with running(KEEPALIVE_TIMEOUT="200ms") as rig, rig.wire() as wire:
        await Http2(wire).request(COLLECTION)
        with trio.fail_after(SOON):
            await wire.rest()


async def test_a_drain_does_not_wait_for_idle_http2() -> None:
    """One connection of a proxy would delay every restart."""
    async with running() as rig, rig.wire() as wire:
        await Http2(wire).request(COLLECTION)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.drain)
            await wire.rest()
            await wire.stream.aclose()


@pytest.mark.parametrize("settings", [b"", b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n"])
@pytest.mark.parametrize("start", [b"GET /healthz HTTP/1.1\r\nHost: x\r\n", HEAD])
async def test_an_upgrade_to_http2_is_ignored(start: bytes, settings: bytes) -> None:
    """A proxy that checks each request would see the first one only."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(start, b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n", settings)
        await wire.send(b"Content-Length: 22\r\n\r\n" + COLLECTION if start == HEAD else b"\r\n")
        with trio.fail_after(SOON):
            assert (await wire.answer()).status in {200, 202}
            await wire.send(post())
            assert (await wire.answer()).status == 202


async def test_http2_begins_only_with_the_connection() -> None:
    """A request before the preface would hide HTTP/2 from the limits for it."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await wire.answer()).status == 200
        await wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
        with trio.fail_after(SOON):
            assert (await wire.answer()).status in {400, 404, 405}


async def test_a_preface_in_single_bytes_is_accepted() -> None:
    """A client whose first packet is small would get the time limits of HTTP/1.1."""
    async with running(REQUEST_TIMEOUT="2s") as rig, rig.wire() as wire:
        client = Http2(wire)
        for byte in client.connection.data_to_send():
            await wire.send(bytes([byte]))
            await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(SOON):
            headers, _ = await client.request(COLLECTION)
        assert headers[b":status"] == b"202"


async def test_a_body_over_http2_beyond_the_limit_gets_413() -> None:
    """Hypercorn fails on data for an answered stream; the client has to see the 413."""
    async with running(MAX_LENGTH="1kB") as rig, rig.wire() as wire:
        headers, body = await Http2(wire).request(b" " * 60_000)
        assert headers[b":status"] == b"413"
        assert b"TOO_LARGE" in body


async def test_an_http2_window_that_stays_closed_ends_the_connection() -> None:
    """A hundred bytes and silence would hold a slot for ever, and delay each drain to its end."""
    async with running(REQUEST_TIMEOUT="200ms") as rig, rig.wire() as wire:
        client = Http2(wire)
        codes = h2.settings.SettingCodes
        client.connection.update_settings({codes.INITIAL_WINDOW_SIZE: 0})
        with trio.fail_after(SOON), pytest.raises(trio.EndOfChannel):
            await client.request(COLLECTION)
        assert rig.intake.taken == [[b"1", b'"two"']]


# --- answers that are counted and logged ---------------------------------------------------------


async def test_answers_over_http2_are_counted_and_logged(
    log_lines: list[MutableMapping[str, Any]],
) -> None:
    """The metric would show no request of an HTTP/2 client, and the log no refused one."""
    async with running() as rig, rig.wire() as wire:
        client = Http2(wire)
        for body in (COLLECTION, b"{}", b'{"a":1}'):
            await client.request(body)
        assert (rig.counted(202), rig.counted(422)) == (1, 2)
    assert [line["status"] for line in log_lines] == [422, 422]
    assert {line["client"] for line in log_lines} == {"127.0.0.1"}


@pytest.mark.parametrize("http2", [True, False])
async def test_an_answer_in_place_of_a_failed_app_is_counted(
    log_lines: list[MutableMapping[str, Any]],
    http2: bool,  # noqa: FBT001
) -> None:
    """A bug would show in no metric."""

    class Broken(QuartTrio):
        async def __call__(self, *_: object) -> None:
            raise ValueError("a bug")

    async with running(Broken("broken")) as rig, rig.wire() as wire:
        if http2:
            headers, _ = await Http2(wire).request(COLLECTION)
            assert headers[b":status"] == b"500"
        else:
            await wire.send(post())
            assert (await wire.answer()).status == 500
        assert rig.counted(500) == 1
    assert "connection_failed" in [line["event"] for line in log_lines]


async def test_a_failing_app_is_answered_with_500(
    log_lines: list[MutableMapping[str, Any]],
) -> None:
    """A bug between Quart and the handlers would leave the client without an answer."""
    app = QuartTrio("broken")

    async def crash(*_: object) -> None:
        raise KeyError("bug")

    app.asgi_app = crash  # type: ignore[method-assign, assignment]
    async with running(app) as rig, rig.wire() as wire:
        await wire.send(post())
        answer = await wire.answer()
        assert (answer.status, answer.document["code"]) == (500, "INTERNAL")
    assert [line["event"] for line in log_lines] == ["connection_failed", "request_refused"]
