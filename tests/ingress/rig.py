"""The real server on a port that the kernel chooses, and a client that can send any bytes."""

from __future__ import annotations

import json
import ssl
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import httpx
import trio

from payloadd.config import settings as config
from payloadd.ingress.admission import open_admission
from payloadd.ingress.api import description_of, make_app
from payloadd.ingress.fastpath.fast_path import FastPath
from payloadd.ingress.refusal_log import RefusalLog
from payloadd.ingress.request_memory import RequestMemory
from payloadd.ingress.routes import Routes
from payloadd.ingress.server.server import ServerOptions, bound_addresses, open_listeners, serve
from payloadd.ingress.server.tls import open_certificates
from payloadd.ingress.submission import Submitter
from payloadd.observe.health import Health
from payloadd.observe.metrics import Metrics
from payloadd.pipeline.intake import Intake, OutcomeCallback, PayloadBytes, Receipt
from payloadd.pipeline.upload_watch import UploadWatch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from quart_trio import QuartTrio

    from payloadd.config.settings import Settings
    from payloadd.errors import RefusedError
    from payloadd.ingress.admission import Admission
    from payloadd.model.envelope import Envelope

ID = uuid.UUID("0198b5a2-7c00-7000-8000-000000000001")
COLLECTION = b'{"payloads":[1,"two"]}'

SOON: Final = 25.0
"""Seconds that an answer may take on a busy machine. The default of REQUEST_TIMEOUT is longer, so a
server that ends a connection only then is found."""

HAS_FAST_PATH = True
"""Whether ``running`` uses the fast path; see ``each_way``."""


class FakeIntake(Intake):
    """An intake that records the payloads, and answers when and how the test wants it."""

    def __init__(self) -> None:
        self.taken: list[list[bytes]] = []
        """The payloads of each accepted request."""
        self.keys: list[str | None] = []
        """The Idempotency-Key of each accepted request."""
        self.streams: list[int] = []
        """The number of the stream of each accepted request."""
        self.fault: Exception | None = None
        """Raised instead of an answer."""
        self.late: RefusedError | None = None
        """Passed to ``done`` instead of a receipt."""
        self.says: RefusedError | None = None
        """Returned by ``refusal``."""
        self.asked = trio.Event()
        """Set when a request arrives."""
        self.open = trio.Event()
        """Requests are answered while this is set."""
        self.open.set()
        self.keeps = True
        self.uploads = UploadWatch()
        self.unstored = None

    @property
    def durable(self) -> bool:
        """Return whether the fake promises that payloads survive the process."""
        return self.keeps

    def submit(
        self,
        payloads: Sequence[PayloadBytes],
        key: str | None,
        done: OutcomeCallback,
        stream: int = 0,
        *,
        envelope: Envelope | None = None,
        watch: bool = False,
    ) -> None:
        """Wait until ``open`` is set; then accept, raise ``fault`` or refuse with ``late``."""
        self.asked.set()
        taken = [bytes(payload) for payload in payloads]
        if envelope is not None:
            taken = envelope.lines(payloads).split(b"\n")[:-1]
        if watch:
            done = self._watching_one_job(done, remembered=key is not None)
        if self.open.is_set():
            self._take(taken, key, done, stream)
        else:
            take = partial(self._take, taken, key, done, stream)
            trio.lowlevel.spawn_system_task(self._take_later, self.open, take)

    async def submit_lines(
        self,
        text: bytes,
        sizes: Sequence[int],
        key: str | None,
        done: OutcomeCallback,
        stream: int = 0,
        *,
        envelope: Envelope | None = None,
        watch: bool = False,
    ) -> None:
        """Submit the payloads of an NDJSON text in the same way."""
        payloads = text.split(b"\n")[:-1]
        assert [*map(len, payloads)] == [*sizes]
        self.submit(payloads, key, done, stream, envelope=envelope, watch=watch)

    def _watching_one_job(self, done: OutcomeCallback, *, remembered: bool) -> OutcomeCallback:
        if ID.int not in self.uploads.jobs:  # all receipts are equal: others are repetitions
            self.uploads.watch(Receipt(ID, 1), 1, remembered=remembered)

        def finish(outcome: Receipt | RefusedError) -> None:
            done(outcome)
            self.uploads.answered(Receipt(ID, 1))

        return finish

    async def _take_later(self, gate: trio.Event, take: Callable[[], None]) -> None:
        await gate.wait()
        take()

    def _take(
        self, taken: list[bytes], key: str | None, done: OutcomeCallback, stream: int
    ) -> None:
        if self.fault is not None:
            raise self.fault
        if self.late is not None:
            done(self.late)
            return
        self.taken.append(taken)
        self.keys.append(key)
        self.streams.append(stream)
        done(Receipt(ID, len(taken)))

    def refusal(self) -> RefusedError | None:
        """Return ``says``."""
        return self.says


@dataclass
class Answer:
    """One HTTP/1.1 answer: header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:  # noqa: ANN401 - JSON
        """The body's JSON."""
        return json.loads(self.body)


class Wire:
    """A TCP or TLS connection of a client, without an HTTP library."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = b""

    async def send(self, *parts: bytes) -> None:
        """Send the parts in one write."""
        await self.stream.send_all(b"".join(parts))

    async def answer(self) -> Answer:
        """Return the next answer; its body must have a Content-Length."""
        head = (await self._until(b"\r\n\r\n")).decode()
        status, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        length = int(headers.get("content-length", "0"))
        while len(self._buffer) < length:
            await self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return Answer(int(status.split()[1]), headers, body)

    async def rest(self) -> bytes:
        """Return all bytes that arrive before the server closes the connection."""
        async for data in self.stream:
            self._buffer += data
        return self._buffer

    async def _until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            await self._more()
        position = self._buffer.index(end) + len(end)
        found, self._buffer = self._buffer[:position], self._buffer[position:]
        return found

    async def _more(self) -> None:
        data = await self.stream.receive_some()
        if not data:
            raise EOFError(self._buffer)
        self._buffer += data


@dataclass
class Rig:
    """A running server and the objects that it uses."""

    settings: Settings
    intake: FakeIntake = field(default_factory=FakeIntake)
    health: Health = field(default_factory=Health)
    metrics: Metrics = field(default_factory=Metrics)
    admission: Admission | None = None
    submitter: Submitter | None = None
    fast_path: FastPath | None = None
    stop: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)
    listeners: list[trio.SocketListener] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"http://{bound_addresses(self.listeners)[0]}"

    def client(self, **options: Any) -> httpx.AsyncClient:  # noqa: ANN401 - httpx's own
        """Return a client for the public address; it loads no certificates, which is slow."""
        no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        return httpx.AsyncClient(base_url=self.url, timeout=SOON, verify=no_tls, **options)

    @asynccontextmanager
    async def wire(self) -> AsyncIterator[Wire]:
        """Connect to the server."""
        host, port = self.listeners[0].socket.getsockname()[:2]
        async with await trio.open_tcp_stream(host, port) as stream:
            yield Wire(stream)

    async def until_unconnected(self) -> None:
        """Wait until the server has noticed that all clients have left.

        Before that, it closes an idle connection for a new one, and writes a warning.
        """
        with trio.fail_after(SOON):
            while self.metrics.requests.connections():  # noqa: ASYNC110 - there is no event for it
                await trio.sleep(0.005)

    async def drain(self) -> None:
        """Drain as ``service`` does."""
        self.health.phase = "draining"
        self.stop.set()
        with trio.fail_after(SOON):
            await self.ended.wait()

    def counted(self, code: int) -> float:
        """Return how many answers with this status were counted."""
        return sum(
            sample.value
            for family in self.metrics.requests.collect()
            for sample in family.samples
            if sample.name == "payloadd_requests_total" and sample.labels["code"] == str(code)
        )


@asynccontextmanager
async def running(
    app: QuartTrio | None = None,
    *,
    max_connections: int = 50,
    options: Mapping[str, Any] | None = None,
    **environ: str,
) -> AsyncIterator[Rig]:
    """Run the public app (or ``app``) with the settings ``environ``; drain it at the end.

    ``options`` are further arguments of ``ServerOptions``.
    """
    rig = Rig(config.load({"BIND": "127.0.0.1:0", **environ}))
    rig.health.phase = "serving"
    refusals = RefusalLog()
    memory = RequestMemory(rig.settings.max_request_bytes, rig.settings.max_length)
    admission = rig.admission = open_admission(rig.settings)
    streams = enumerate(rig.settings.streams or (), start=1)
    routes = Routes({"default": 0} | {name: number for number, name in streams})
    submitter = rig.submitter = Submitter(
        rig.intake, rig.health, rig.settings, memory, admission, routes
    )
    fast_path = None
    if app is None:
        app = make_app(submitter, rig.health, refusals, rig.settings)
        if HAS_FAST_PATH:
            fast_path = FastPath(submitter, rig.health, rig.metrics, refusals, description_of(app))
    rig.fast_path = fast_path
    rig.listeners = await open_listeners(rig.settings.bind)
    certificates = open_certificates(rig.settings)
    count = rig.metrics.requests.count
    per_client = rig.settings.max_connections_per_client
    server_options = ServerOptions(
        *(max_connections, fast_path, certificates, memory, count, refusals, per_client),
        proxies=rig.settings.trusted_proxies or (),
        proxy_headers=rig.settings.client_address == "proxy",
        cors=submitter.cors,
        metrics=rig.metrics.requests,
        **(options or {}),
    )

    async def run(task_status: trio.TaskStatus[None]) -> None:
        await serve(
            app, rig.listeners, rig.settings, rig.stop, server_options, task_status=task_status
        )
        rig.ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(submitter.run)
        await nursery.start(run)
        yield rig
        await rig.drain()
        # A request that was never answered still holds its memory.
        assert memory.used == 0 or not rig.intake.open.is_set()
        nursery.cancel_scope.cancel()


def post(body: bytes = COLLECTION, *headers: str, path: str = "/v1/payloads") -> bytes:
    """Return the bytes of a complete POST."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: here",
        *(headers or ("Content-Type: application/json",)),
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
