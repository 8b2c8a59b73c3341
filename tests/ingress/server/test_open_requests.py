"""The limit of the requests that Hypercorn has in progress, and the memory that they release."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.errors
import h2.events
import pytest
import trio

from payloadd.ingress.server import server
from payloadd.ingress.server.hypercorn_connection import HypercornConnection
from payloadd.ingress.server.open_requests import OpenRequests
from tests.ingress import rig as rigs
from tests.ingress.rig import COLLECTION, post, running

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping
    from typing import Any

    from tests.ingress.rig import Wire

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
TAKEN = [b"1", b'"two"']
REQUEST = [
    (":method", "POST"),
    (":path", "/v1/payloads"),
    (":scheme", "http"),
    (":authority", "here"),
    ("content-type", "application/json"),
]


async def test_further_requests_of_a_connection_are_refused_without_a_free_place(
    log_lines: list[MutableMapping[str, Any]],
) -> None:
    """A thousand connections with 16 open requests each would take hundreds of MiB."""
    options = {"open_requests": OpenRequests(shared_places=2)}
    async with running(options=options) as rig, rig.wire() as first, rig.wire() as second:
        rig.intake.open = trio.Event()
        one, two = Http2(first), Http2(second)
        await one.post(1, 3, 5)
        await one.until(lambda: one.refused == [5])
        # The first request of a connection needs no place.
        await two.post(1, 3)
        await two.until(lambda: two.refused == [3])
        rig.intake.open.set()
        await one.until(lambda: one.statuses == {1: 202, 3: 202})
        await two.until(lambda: two.statuses == {1: 202})
        # The refused request, with its body, has not broken the connection.
        await one.post(7)
        await one.until(lambda: 7 in one.statuses)
        assert rig.intake.taken == [TAKEN] * 4
    (line,) = [line for line in log_lines if line["event"] == "http2_streams_refused"]
    assert line["log_level"] == "warning"


class Http2:
    """A client that speaks HTTP/2 from the first byte."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self._connection.initiate_connection()
        self.statuses: dict[int, int] = {}
        self.refused: list[int] = []

    async def post(self, *streams: int) -> None:
        """Send a collection on each of these streams."""
        for stream in streams:
            self._connection.send_headers(stream, REQUEST)
            self._connection.send_data(stream, COLLECTION, end_stream=True)
        await self._wire.send(self._connection.data_to_send())

    async def until(self, reached: Callable[[], bool]) -> None:
        """Read until ``reached`` returns True."""
        with trio.fail_after(30):
            while not reached():
                data = await self._wire.stream.receive_some()
                assert data, "the connection has ended"
                for event in self._connection.receive_data(bytes(data)):
                    self._record(event)

    def _record(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ResponseReceived):
            self.statuses[event.stream_id] = int(dict(event.headers)[b":status"])
        elif isinstance(event, h2.events.StreamReset):
            assert event.error_code == h2.errors.ErrorCodes.REFUSED_STREAM
            self.refused.append(event.stream_id)


async def test_open_requests_are_counted_down() -> None:
    """All places would be used up, and each connection would have one request for ever."""
    open_requests = OpenRequests()
    async with running(options={"open_requests": open_requests}) as rig:
        async with rig.wire() as wire:
            client = Http2(wire)
            await client.post(1, 3)
            await client.until(lambda: len(client.statuses) == 2)
            rig.intake.open = trio.Event()
            await client.post(5)
            while not open_requests.count:
                await trio.lowlevel.checkpoint()
            # A client that only ends its sending side gets its answer.
            linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
            wire.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, linger)
        with trio.fail_after(30):
            while open_requests.count:  # noqa: ASYNC110 - a plain number
                await trio.sleep(0.01)
        rig.intake.open.set()


@pytest.mark.parametrize("http2", [True, False])
async def test_the_memory_of_a_connection_is_freed_when_it_ends(
    http2: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thousand connections would stay in memory until a slow garbage collection."""
    seen: list[weakref.ref[object]] = []

    def make(*arguments: Any) -> HypercornConnection:  # noqa: ANN401 - passed on
        connection = HypercornConnection(*arguments)
        seen.extend([weakref.ref(connection), weakref.ref(arguments[4])])
        return connection

    monkeypatch.setattr(server, "HypercornConnection", make)
    monkeypatch.setattr(rigs, "HAS_FAST_PATH", http2)
    async with running() as rig:
        gc.disable()
        try:
            async with rig.wire() as wire:
                if http2:
                    client = Http2(wire)
                    await client.post(1)
                    await client.until(lambda: client.statuses == {1: 202})
                else:
                    await wire.send(GET)
                    assert (await wire.answer()).status == 200
                # A cancelled task would have a traceback with reference cycles.
                await trio.testing.wait_all_tasks_blocked(0.1)
            assert len(seen) == 2
            with trio.fail_after(30):
                while any(reference() is not None for reference in seen[:2]):
                    # The fast path has a reference to the connection that it read last.
                    async with rig.wire() as wire:
                        await wire.send(post())
                        await wire.answer()
        finally:
            gc.enable()
