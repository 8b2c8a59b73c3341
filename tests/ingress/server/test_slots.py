"""More clients than slots: the choice of the connections that are closed for new ones."""

from __future__ import annotations

import socket
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

import h2.config
import h2.connection
import pytest
import trio

from payloadd.config.parsers import UnixAddress
from payloadd.ingress.admin import make_admin_app
from payloadd.ingress.server.client_stream import ClientStream
from payloadd.ingress.server.fifo_gate import FifoGate
from payloadd.ingress.server.http2_input import PREFACE
from payloadd.ingress.server.server import ServerOptions, open_listeners, serve
from payloadd.ingress.server.slots import Slots
from payloadd.ingress.server.socket_stream import NonBlockingStream
from payloadd.open_files import ADMIN_CONNECTIONS
from tests.ingress.rig import COLLECTION, SOON, Wire, post, running

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from pathlib import Path

    from tests.ingress.rig import Rig
    from tests.ingress.tls_files import Files

Log = list["MutableMapping[str, Any]"]

SLOTS = 8
HEAD = b"POST /v1/payloads HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
HTTP2_HEADERS = [
    (":method", "POST"),
    (":path", "/v1/payloads"),
    (":scheme", "http"),
    (":authority", "here"),
    ("content-type", "application/json"),
]
OLD = 0.6
"""Seconds after which a connection can be evicted and its deadline has been checked."""


@pytest.fixture(autouse=True)
def may_warn(log_lines: Log) -> None:
    """Allow the warnings that slots are short."""


def http2(*, whole: bool) -> bytes:
    """Return the start of an HTTP/2 connection, with a request that is ``whole`` or not."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    client.send_headers(1, HTTP2_HEADERS)
    client.send_data(1, COLLECTION if whole else COLLECTION[:5], end_stream=whole)
    return client.data_to_send()


async def connected(rig: Rig, stack: AsyncExitStack, sent: bytes) -> Wire:
    """Connect and send ``sent``."""
    wire = await stack.enter_async_context(rig.wire())
    if sent:
        await wire.send(sent)
    return wire


async def seconds_of_a_post(rig: Rig) -> float:
    """Return how many seconds a new client waits for its answer."""
    started = trio.current_time()
    async with rig.wire() as wire:
        await wire.send(post())
        assert (await wire.answer()).status == 202
    return trio.current_time() - started


@pytest.mark.usefixtures("each_way")
async def test_clients_that_are_never_idle_for_long_keep_no_others_out() -> None:
    """A few small requests per second on each connection would make the daemon unreachable."""
    async with running(max_connections=SLOTS) as rig, AsyncExitStack() as stack:

        async def repeat(wire: Wire) -> None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
                while True:
                    await wire.send(post())
                    await wire.answer()
                    await trio.sleep(0.05)  # the pace of the client, not a wait for an event

        async with trio.open_nursery() as nursery:
            for _ in range(SLOTS):
                nursery.start_soon(repeat, await connected(rig, stack, b""))
            with trio.fail_after(SOON):
                for _ in range(5):
                    await seconds_of_a_post(rig)
            nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    ("sent", "drip"),
    [
        (b"", b""),
        (b"P", b"O"),
        (HEAD + b"Content-Length: 1000\r\n\r\n{", b" "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{", b"\r\n1\r\n "),
        (http2(whole=False), b""),
    ],
    ids=["idle", "head", "body", "chunked", "http2"],
)
async def test_clients_that_hold_connections_keep_no_others_out(
    sent: bytes, drip: bytes, log_lines: Log
) -> None:
    """A few hundred silent connections would make the daemon unreachable until its time limits."""
    async with running(max_connections=SLOTS) as rig, AsyncExitStack() as stack:

        async def hold(wire: Wire) -> None:
            try:
                while drip:
                    await trio.sleep(0.3)  # the pace of the client, not a wait for an event
                    await wire.send(drip)
                await wire.rest()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

        async with trio.open_nursery() as nursery:
            for _ in range(3 * SLOTS):
                nursery.start_soon(hold, await connected(rig, stack, sent))
            with trio.fail_after(SOON):
                waits = [await seconds_of_a_post(rig) for _ in range(5)]
            nursery.cancel_scope.cancel()
        # The first client has to wait for the two thirds of the connections that are new.
        assert min(waits) < 1
    assert {line["event"] for line in log_lines} - {"request_refused"} == {"connections_full"}


async def test_the_connection_idle_for_longest_is_evicted(log_lines: Log) -> None:
    """A connection in steady use would be closed, and an unused one kept."""
    async with running(max_connections=3) as rig, AsyncExitStack() as stack:
        wires = []
        for _ in range(3):
            wires.append(await connected(rig, stack, post()))
            assert (await wires[-1].answer()).status == 202
            await trio.sleep(OLD)
        await wires[0].send(post())  # now another connection is idle for longest
        assert (await wires[0].answer()).status == 202
        await seconds_of_a_post(rig)
        with trio.fail_after(SOON):
            assert await wires[1].rest() == b""
        for wire in (wires[0], wires[2]):
            await wire.send(post())
            assert (await wire.answer()).status == 202
    assert {line["event"] for line in log_lines} - {"request_refused"} == {"connections_full"}


@pytest.mark.usefixtures("each_way")
async def test_the_slowest_sender_is_evicted_with_408(log_lines: Log) -> None:
    """A client would see a broken connection, and not the reason."""
    async with running(max_connections=2) as rig, AsyncExitStack() as stack:
        slow = await connected(rig, stack, HEAD + b"Content-Length: 5000\r\n\r\n{")
        quick = await connected(rig, stack, HEAD + b"Content-Length: 5000\r\n\r\n" + b" " * 4978)
        await trio.sleep(OLD)
        await seconds_of_a_post(rig)
        answer = await slow.answer()
        assert (answer.status, answer.document["code"]) == (408, "TIMEOUT")
        assert answer.headers["connection"] == "close"
        await quick.send(COLLECTION)
        assert (await quick.answer()).status == 202
    assert {line["event"] for line in log_lines} - {"request_refused"} == {"connections_full"}


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("sent", [post(), http2(whole=True)], ids=["http1", "http2"])
async def test_a_client_that_waits_for_an_answer_keeps_its_slot(sent: bytes) -> None:
    """A request would be stored, and its client would get no answer and send it again."""
    async with running(max_connections=2) as rig, AsyncExitStack() as stack:
        gate = rig.intake.open = trio.Event()
        wires = []
        for _ in range(2):
            rig.intake.asked = trio.Event()
            wires.append(await connected(rig, stack, sent))
            await rig.intake.asked.wait()
        await trio.sleep(OLD)
        async with rig.wire() as late:
            await late.send(post())
            with trio.move_on_after(0.5):
                await late.answer()
                raise AssertionError
            gate.set()
            if sent == post():
                for wire in wires:
                    assert (await wire.answer()).status == 202
            with trio.fail_after(60):  # connections with their answer are idle
                rig.intake.asked = trio.Event()
                await rig.intake.asked.wait()
        assert rig.intake.taken == [[b"1", b'"two"']] * 3


async def test_a_client_that_reads_no_answer_is_evicted() -> None:
    """The client would hold its slot for REQUEST_TIMEOUT, and a thousand clients all slots."""
    async with running(max_connections=1) as rig, AsyncExitStack() as stack:
        (listener,) = rig.listeners
        # The kernel's own buffer takes thousands of answers.
        listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        wire = await connected(rig, stack, b"")
        wire.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with trio.move_on_after(1):
            while True:
                await wire.send(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        with trio.fail_after(SOON):
            await seconds_of_a_post(rig)


async def test_stalled_handshakes_are_evicted(files: Files) -> None:
    """One byte of TLS per second would hold a slot."""
    async with files.running(max_connections=SLOTS) as rig, AsyncExitStack() as stack:
        for number in range(2 * SLOTS):
            await connected(rig, stack, b"\x16\x03" if number % 2 else b"")
        with trio.fail_after(60):
            async with files.wire(rig) as wire:
                await wire.send(post())
                assert (await wire.answer()).status == 202


async def test_probes_are_answered_while_clients_hold_the_admin_address() -> None:
    """Silent connections would make a load balancer remove the daemon."""
    async with running() as rig, AsyncExitStack() as stack:
        app = make_admin_app(rig.intake, rig.health, rig.metrics, rig.settings)
        listeners = await open_listeners(rig.settings.bind)
        rig.listeners = [*listeners, *rig.listeners]
        stop = trio.Event()
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, app, listeners, rig.settings, stop, ServerOptions(SLOTS))
            for _ in range(SLOTS):
                await connected(rig, stack, b"")
            await trio.sleep(OLD)
            for _ in range(3):
                wire = await connected(rig, stack, b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
                with trio.fail_after(SOON):
                    assert (await wire.answer()).status == 200
            stop.set()


async def test_a_hundred_open_pages_keep_their_connections() -> None:
    """Each poll of a page would need a new connection, which costs more than the poll."""
    poll = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    async with running() as rig, AsyncExitStack() as stack:
        app = make_admin_app(rig.intake, rig.health, rig.metrics, rig.settings)
        listeners = await open_listeners(rig.settings.bind)
        rig.listeners = [*listeners, *rig.listeners]
        stop = trio.Event()
        options = ServerOptions(ADMIN_CONNECTIONS)
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, app, listeners, rig.settings, stop, options)
            pages = [await connected(rig, stack, b"") for _ in range(100)]
            for wire in pages * 2:
                await wire.send(poll)
                with trio.fail_after(SOON):
                    assert (await wire.answer()).status == 200
            stop.set()


# --- connections of one client -----------------------------------------------------------------


async def test_connections_of_one_client_are_limited(log_lines: Log) -> None:
    """One client with a thousand connections would leave none to the others."""
    async with (
        running(MAX_CONNECTIONS_PER_CLIENT="2") as rig,
        rig.wire() as first,
        rig.wire() as second,
    ):
        for wire in (first, second):
            await wire.send(post())
            assert (await wire.answer()).status == 202
        for _ in range(3):
            async with rig.wire() as third:
                with trio.fail_after(SOON):
                    assert await is_refused(third)
        await second.stream.aclose()
        with trio.fail_after(SOON):
            while True:
                async with rig.wire() as third:
                    if not await is_refused(third):
                        break
    (line,) = [line for line in log_lines if line["event"] == "client_connections_refused"]
    assert line["client"] == "127.0.0.1"


async def is_refused(wire: Wire) -> bool:
    """Post; return whether the connection was closed without an answer."""
    try:
        await wire.send(post())
        assert (await wire.answer()).status == 202
    except (EOFError, trio.BrokenResourceError):
        return True
    return False


async def test_connections_by_a_unix_socket_are_not_limited_per_client(tmp_path: Path) -> None:
    """A proxy on the same machine would be refused as if it were one client."""
    address = UnixAddress(str(tmp_path / "s"))
    one = running(MAX_CONNECTIONS_PER_CLIENT="1", BIND=str(address))
    async with one as rig, AsyncExitStack() as stack:
        for _ in range(3):
            opened = await trio.open_unix_socket(address.path)
            wire = Wire(await stack.enter_async_context(opened))
            await wire.send(post())
            assert (await wire.answer()).status == 202
        assert len(rig.intake.taken) == 3


@pytest.mark.parametrize("left", [True, False])
async def test_http2_clients_that_have_left_before_their_turn_are_evicted(left: bool) -> None:  # noqa: FBT001
    """Clients that connect, send frames and leave would fill all slots, and others wait seconds."""
    here, there = socket.socketpair()
    with there:
        here.settimeout(0)
        transport = NonBlockingStream(here)
        stream = ClientStream(transport, 30.0, 60.0, FifoGate())
        stream.pass_to_hypercorn(PREFACE)
        slots = Slots(1, None)
        slots.add(stream, None)
        if left:
            there.shutdown(socket.SHUT_WR)
        assert slots.has_room() is left
        stream.close_now()
