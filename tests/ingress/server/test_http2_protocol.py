"""HTTP/2 in few writes: whole answers, repeated header blocks, and answers that do not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
import structlog.testing
import trio
from hypercorn.protocol.http_stream import HTTPStream
from quart import Response
from quart_trio import QuartTrio
from trio.testing import wait_all_tasks_blocked

from payloadd.ingress.server import http2_protocol
from payloadd.ingress.server.client_stream import ClientStream
from payloadd.ingress.server.header_blocks import RememberingDecoder
from tests.ingress.rig import COLLECTION, SOON, post, running

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.ingress.conftest import Refusal
    from tests.ingress.rig import Wire

HEAD = [(":method", "POST"), (":path", "/v1/payloads"), (":scheme", "http"), (":authority", "h")]
TYPE = ("content-type", "application/json")


class Client:
    """A client of HTTP/2 that sees every event."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.http.initiate_connection()
        self.headers: dict[int, dict[bytes, bytes]] = {}
        self.bodies: dict[int, bytes] = {}
        self.ended: list[int] = []
        self.reset: list[int] = []
        self.acknowledges = True
        """Whether received bytes open the window again."""
        self.goaway: int | None = None
        """The last stream of which the server says that it may have been processed."""

    def ask(self, stream: int, body: bytes = COLLECTION, method: str = "POST") -> None:
        """Prepare a request."""
        head = [(":method", method), *HEAD[1:], TYPE]
        self.http.send_headers(stream, head, end_stream=not body)
        if body:
            self.http.send_data(stream, body, end_stream=True)

    async def send(self) -> None:
        """Send what is prepared."""
        await self._wire.send(self.http.data_to_send())

    async def until(self, enough: Callable[[], bool]) -> None:
        """Read until ``enough`` returns True."""
        with trio.fail_after(SOON):
            await self.send()
            while not enough():
                data = bytes(await self._wire.stream.receive_some())
                if not data:
                    raise EOFError
                for event in self.http.receive_data(data):
                    self._note(event)
                await self.send()

    def _note(self, event: h2.events.Event) -> None:
        seen: Any = event
        match seen:
            case h2.events.ResponseReceived():
                self.headers[seen.stream_id] = dict(seen.headers)
            case h2.events.DataReceived():
                self.bodies[seen.stream_id] = self.bodies.get(seen.stream_id, b"") + seen.data
                if self.acknowledges:
                    self.http.acknowledge_received_data(seen.flow_controlled_length, seen.stream_id)
            case h2.events.StreamEnded():
                self.ended.append(seen.stream_id)
            case h2.events.StreamReset():
                self.reset.append(seen.stream_id)
            case h2.events.ConnectionTerminated():
                self.goaway = seen.last_stream_id
            case _:
                pass


async def test_an_answer_is_one_write_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer would take three writes, and three records of TLS."""
    sent: list[bytes] = []
    begin = ClientStream.begin_to_send

    def note(stream: ClientStream, data: bytes) -> bool:
        sent.append(data)
        return begin(stream, data)

    async with running() as rig, rig.wire() as wire:
        client = Client(wire)
        gate = rig.intake.open = trio.Event()
        for stream in (1, 3, 5):
            client.ask(stream)
        await client.send()
        await rig.intake.asked.wait()
        await wait_all_tasks_blocked(0.05)
        monkeypatch.setattr(ClientStream, "begin_to_send", note)
        gate.set()
        await client.until(lambda: len(client.ended) == 3)
    assert len(sent) <= 3  # one if all three handlers run in one pass of the event loop
    assert [client.headers[stream][b":status"] for stream in (1, 3, 5)] == [b"202"] * 3
    assert all(b"date" in client.headers[stream] for stream in (1, 3, 5))


@pytest.mark.parametrize("window", [0, 10, 1_000_000])
async def test_an_answer_that_does_not_fit_waits_for_the_window(window: int) -> None:
    """A long answer, or a client with a small window, would get a part or an error."""
    app = QuartTrio("long")
    content = bytes(range(256)) * 300

    @app.post("/v1/payloads")
    async def answer() -> Response:
        return Response(content)

    async with running(app) as rig, rig.wire() as wire:
        client = Client(wire)
        sizes: dict[h2.settings.SettingCodes | int, int] = {
            h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window
        }
        client.http.update_settings(sizes)
        for stream in (1, 3):
            client.ask(stream)
        await client.until(lambda: len(client.headers) == 2)
        if window < len(content):
            for stream in (1, 3):
                client.http.increment_flow_control_window(200_000, stream)
        await client.until(lambda: len(client.ended) == 2)
        assert client.bodies == {1: content, 3: content}


async def test_a_request_that_is_refused_early_can_be_answered_by_a_closed_window() -> None:
    """The frame that opens the window would not be read behind a body that nothing reads."""
    async with running(MAX_LENGTH="1000") as rig, rig.wire() as wire:
        client = Client(wire)
        client.http.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
        client.http.send_headers(1, [*HEAD, TYPE])
        for _ in range(4):
            client.http.send_data(1, bytes(8_000))
        await client.until(lambda: bool(client.headers))
        client.http.increment_flow_control_window(1000, 1)
        await client.until(lambda: bool(client.ended or client.reset))
        assert client.headers[1][b":status"] == b"413"
        assert b"TOO_LARGE" in client.bodies[1]


async def test_the_head_of_an_answer_has_no_body_where_none_may_be() -> None:
    """A HEAD request would be answered with a body, which breaks the connection."""
    async with running() as rig, rig.wire() as wire:
        client = Client(wire)
        client.http.send_headers(
            1, [(":method", "HEAD"), (":path", "/healthz"), *HEAD[2:]], end_stream=True
        )
        await client.until(lambda: client.ended == [1])
        assert client.headers[1][b":status"] == b"200"
        assert client.bodies == {}
        client.ask(3)
        await client.until(lambda: client.ended == [1, 3])


async def test_connect_ends_the_connection_and_no_other() -> None:
    """A client could ask the daemon for a tunnel."""
    async with running() as rig:
        async with rig.wire() as wire:
            client = Client(wire)
            client.http.send_headers(1, [(":method", "CONNECT"), (":authority", "h:1")])
            with pytest.raises(EOFError):
                await client.until(lambda: client.ended == [1])
        async with rig.wire() as wire:
            await wire.send(post())
            assert (await wire.answer()).status == 202


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", b"/v1/payl\xc3\xb6ads", b"404"), ("P\xd6ST", b"/v1/payloads", b"405")],
)
async def test_bytes_beyond_ascii_end_no_connection(
    method: str, path: bytes, status: bytes
) -> None:
    """One client of a proxy would end the requests of all its clients."""
    async with running() as rig, rig.wire() as wire:
        client = Client(wire)
        gate = rig.intake.open = trio.Event()
        client.ask(1)
        head: list[tuple[str | bytes, str | bytes]] = [*HEAD[2:], TYPE]
        head[:0] = [(":method", method.encode("latin-1")), (":path", path)]
        client.http.send_headers(3, head, end_stream=True)
        await client.until(lambda: 3 in client.ended)
        gate.set()
        await client.until(lambda: client.ended == [3, 1])
        assert (client.headers[1][b":status"], client.headers[3][b":status"]) == (b"202", status)
        assert rig.counted(int(status)) == 1


@pytest.mark.parametrize(("size", "window"), [(20_000, 65_535), (60_000, 65_535), (60_000, 10)])
async def test_a_head_that_is_too_large_is_answered_and_counted(
    size: int, window: int, refusals: list[Refusal]
) -> None:
    """The client would see a lost connection, and the operator neither an answer nor a line."""
    async with running() as rig, rig.wire() as wire:
        client = Client(wire)
        sizes: dict[h2.settings.SettingCodes | int, int] = {
            h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window
        }
        client.http.update_settings(sizes)
        client.ask(1, b"", "GET")
        await client.until(lambda: client.headers.get(1) is not None)
        client.http.send_headers(3, [*HEAD, ("x", "{" * size)])
        with pytest.raises(EOFError):
            await client.until(bool)
        assert client.headers[3][b":status"] == b"400"
        assert 3 in client.ended
        assert (b"the request's head is too large" in client.bodies.get(3, b"")) == (window > 10)
        assert rig.counted(400) == 1
        assert [one.problem.code for one in refusals if one.problem.status == 400] == ["MALFORMED"]


@pytest.mark.parametrize("size", [20_000, 40_000])
@pytest.mark.parametrize("packets", [1, 2])
async def test_a_request_before_a_head_that_is_too_large_is_answered(
    size: int, packets: int
) -> None:
    """GOAWAY says that it may have been processed: its client could not repeat it."""
    async with running() as rig, rig.wire() as wire:
        client = Client(wire)
        gate = rig.intake.open = trio.Event()
        client.ask(1)
        if packets == 2:
            await client.send()
            with trio.fail_after(10):
                await rig.intake.asked.wait()
        client.http.send_headers(3, [*HEAD, ("x", "{" * size)])
        client.ask(5)
        await client.send()
        with trio.fail_after(10):
            await rig.intake.asked.wait()
        gate.set()
        with pytest.raises(EOFError):
            await client.until(bool)
        answers = {stream: head[b":status"] for stream, head in client.headers.items()}
        assert answers == {1: b"202", 3: b"400"}
        assert client.ended.count(1) == client.ended.count(3) == 1
        # The client may repeat the request after these.
        assert client.goaway == 3
        assert len(rig.intake.taken) == 1


async def test_the_answer_to_such_a_head_uses_the_window_of_the_connection() -> None:
    """The answers after it would exceed the window, and the client would drop all of them."""
    app = QuartTrio("long")
    gate, asked = trio.Event(), trio.Event()

    @app.get("/long")
    async def fill() -> Response:
        return Response(bytes(65_535 - 400))  # all of the window (RFC 9113, section 6.9.2) but 400

    @app.get("/late")
    async def late() -> Response:
        asked.set()
        await gate.wait()
        return Response(bytes(300))

    async with running(app) as rig, rig.wire() as wire:
        client = Client(wire)
        client.acknowledges = False
        sizes: dict[h2.settings.SettingCodes | int, int] = {
            h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1_000_000
        }
        client.http.update_settings(sizes)
        for stream, path in ((1, "/long"), (3, "/late")):
            head = [(":method", "GET"), (":path", path), *HEAD[2:]]
            client.http.send_headers(stream, head, end_stream=True)
        await client.until(lambda: client.ended == [1] and asked.is_set())
        client.http.send_headers(5, [*HEAD, ("x", "{" * 20_000)])
        await client.send()
        await wait_all_tasks_blocked(0.05)
        gate.set()
        with pytest.raises(EOFError):
            await client.until(bool)
        assert client.ended == [1, 5]
        assert client.goaway == 5


async def test_an_incomplete_request_before_such_a_head_keeps_no_connection() -> None:
    """A client could keep connections for REQUEST_TIMEOUT each, after their last answer."""
    async with running(REQUEST_TIMEOUT="1h") as rig, rig.wire() as wire:
        client = Client(wire)
        client.http.send_headers(1, [*HEAD, TYPE])
        client.http.send_headers(3, [*HEAD, ("x", "{" * 20_000)])
        with pytest.raises(EOFError):
            await client.until(bool)
        assert client.ended == [3]
        assert client.goaway == 3
        assert rig.intake.taken == []


async def test_a_repeated_head_is_no_valid_trailer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request whose head was checked once would be accepted as the trailers of another one."""
    decoders: list[RememberingDecoder] = []

    def new_decoder(largest: int) -> RememberingDecoder:
        decoders.append(RememberingDecoder(largest))
        return decoders[-1]

    monkeypatch.setattr(http2_protocol, "RememberingDecoder", new_decoder)
    async with running() as rig, rig.wire() as wire:
        client = Client(wire)
        for stream in (1, 3, 5):
            client.ask(stream)
            await client.until(lambda: stream in client.ended)  # noqa: B023
        assert len(decoders[-1].valid) == 1  # the head of the third request
        client.http.send_headers(7, [*HEAD, TYPE])
        client.http.send_data(7, COLLECTION)
        await client.send()
        client.http.config.validate_outbound_headers = False
        client.http.send_headers(7, [*HEAD, TYPE], end_stream=True)
        with pytest.raises(EOFError):
            await client.until(lambda: 7 in client.ended)
    assert rig.intake.taken == [[b"1", b'"two"']] * 3


async def test_an_answer_is_passed_on_without_the_events_of_hypercorn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each answer would take the CPU time that they cost."""
    messages: list[Any] = []
    send = HTTPStream.app_send

    async def record(stream: HTTPStream, message: Any) -> None:  # noqa: ANN401 - ASGI's types
        messages.append(message)
        await send(stream, message)

    monkeypatch.setattr(HTTPStream, "app_send", record)
    async with running() as rig, rig.wire() as wire:
        client = Client(wire)
        client.ask(1)
        await client.until(lambda: client.ended == [1])
    assert client.headers[1][b":status"] == b"202"
    assert messages in ([], [None])  # the end of the app may come after that of the connection


async def test_an_app_that_fails_within_its_answer_resets_the_request() -> None:
    """The client would wait for the rest of the answer."""

    async def app(scope: Any, _receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/v1/payloads":
            raise ValueError
        await send({"type": "http.response.body"})

    async with running(cast("QuartTrio", app)) as rig, rig.wire() as wire:
        client = Client(wire)
        client.ask(1)
        with structlog.testing.capture_logs() as lines:
            await client.until(lambda: client.reset == [1])
        assert [line["event"] for line in lines] == ["connection_failed"]
        assert client.headers == {}
        client.http.send_headers(
            3, [(":method", "GET"), (":path", "/healthz"), *HEAD[2:]], end_stream=True
        )
        await client.until(lambda: client.ended == [3])
        assert client.headers[3][b":status"] == b"200"
