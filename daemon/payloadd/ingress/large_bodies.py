"""Decode large bodies one after another in a separate process.

Neither a task nor a thread may hold Python's lock for as long as a large document takes. The
process starts with the first such body and ends when none has arrived for a while. A body that
kills the process, or takes it longer than any body should, is refused; the next one gets a new
process.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from payloadd.child_process import ChildProcess, receive
from payloadd.errors import RefusedError
from payloadd.ingress.decoder_process import (
    SIZES,
    DecodeRefusal,
    DecodeRequest,
    DecodeResult,
    receive_answer,
    send_head,
)
from payloadd.ingress.problem import Problem, refusal_problem
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from payloadd.ingress.body import Limits

log = get_logger(__name__)

_DECODE_TIMEOUT: Final = 30.0
"""Seconds that the process may take for one body, several times as long as the worst one needs."""
_MAX_PER_CLIENT: Final = 64
"""Waiting bodies of one client. A few compressed bytes wait as long as megabytes, and each body
keeps a connection that cannot be closed for another one."""
_MAX_EXPECTED_WAIT: Final = 10.0
"""Seconds that a body is expected to wait at most; with more it is refused at once."""
_IDLE_TIMEOUT: Final = 60.0
_BUSY_INTERVAL: Final = 0.5
_RETRY_AFTER: Final = 2


@dataclass(slots=True)
class Lines:
    """The payloads of one body as NDJSON."""

    text: bytes
    sizes: array[int]
    """Bytes of each payload, without its line feed."""


@dataclass(slots=True, eq=False)
class LargeBody:
    """A body that waits to be decoded."""

    data: bytes | bytearray
    start: int
    """The offset in ``data`` at which the body begins."""
    content_type: str | None
    content_encoding: str | None
    submit: Callable[[Lines], Awaitable[None]]
    """Is awaited with the payloads."""
    refuse: Callable[[Problem | RefusedError], None]
    """Is called instead if the body is refused."""
    client: str | None
    """The name or the address of its client: clients take turns."""
    is_gone: Callable[[], bool]
    """Returns whether its client is gone, and gets no answer."""
    document: bool = False
    """Whether the whole body is one payload."""
    since: float = field(default_factory=trio.current_time)


class LargeBodies:
    """The waiting bodies, and the process that decodes them.

    ``limits`` bound each body. A body that has waited for ``max_wait`` seconds is refused: its
    client has given up. ``wait_for_memory`` returns when there is memory for the next body.
    ``on_busy`` is called before each body, and every half second while the body is decoded and
    submitted.
    """

    def __init__(
        self,
        limits: Limits,
        max_wait: float,
        wait_for_memory: Callable[[], Awaitable[None]],
        on_busy: Callable[[], object] = lambda: None,
    ) -> None:
        self.decode_timeout = _DECODE_TIMEOUT
        """Seconds that the process may take for one body."""
        self.idle_timeout = _IDLE_TIMEOUT
        """Seconds without a body after which the process ends."""
        self.busy_interval = _BUSY_INTERVAL
        """Seconds between two calls of ``on_busy``."""
        self._on_busy = on_busy
        self._limits = limits
        self._max_wait = max_wait
        self._wait_for_memory = wait_for_memory
        # By client, the client of the next turn first. Each body has acquired its memory already
        # (MAX_REQUEST_BYTES), and is a request of one connection.
        self._waiting: dict[str | None, deque[LargeBody]] = {}
        self._average_seconds = 0.0
        """Seconds that one body takes: a moving average."""
        self._added = trio.Event()
        self.process: DecoderProcess | None = None
        """The running process, None if there is none."""

    def add(self, body: LargeBody) -> None:
        """Add a body to the queue; raises Problem BUSY if it would wait too long."""
        own = self._waiting.get(body.client, ())
        # Clients take turns: no other client has more bodies decoded before this one than the
        # body's own client has.
        ahead = sum(min(len(bodies), len(own)) for bodies in self._waiting.values())
        if len(own) >= _MAX_PER_CLIENT or ahead * self._average_seconds > _MAX_EXPECTED_WAIT:
            raise refusal_problem(
                busy_error("too many large requests; nothing of this one was accepted")
            )
        self._waiting.setdefault(body.client, deque()).append(body)
        self._added.set()

    def _pop_next(self) -> LargeBody:
        """Remove and return the next body; its client goes to the end of the queue."""
        client = next(iter(self._waiting))
        bodies = self._waiting.pop(client)
        body = bodies.popleft()
        if bodies:
            self._waiting[client] = bodies
        return body

    async def run(self) -> None:
        """Decode bodies until cancelled, then end the process."""
        try:
            while True:
                with trio.move_on_after(self.idle_timeout):
                    await self._added.wait()
                if not self._waiting:
                    await self._end_process()
                    await self._added.wait()
                self._added = trio.Event()
                while self._waiting:
                    self._on_busy()
                    await self._wait_for_memory()
                    # A refusal is no checkpoint, and thousands of bodies may be refused in a row.
                    await trio.lowlevel.checkpoint()
                    body = self._pop_next()
                    if trio.current_time() - body.since > self._max_wait:
                        body.refuse(
                            busy_error("too many large requests; nothing of this one was accepted")
                        )
                    elif body.is_gone():
                        # Its client sends it again; and clients that leave would keep the process
                        # busy, and the memory of their bodies in use, for minutes.
                        body.refuse(
                            busy_error("the client has left; nothing of its request was accepted")
                        )
                    else:
                        began = trio.current_time()
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(self._report_busy)
                            await self._decode_and_submit(body)
                            nursery.cancel_scope.cancel()
                        self._average_seconds += (
                            trio.current_time() - began - self._average_seconds
                        ) / 8
                    del body  # else this frame would keep its bytes until the next one
        finally:
            with trio.CancelScope(shield=True):
                await self._end_process()

    async def _report_busy(self) -> None:
        """Call ``on_busy`` repeatedly: the pipeline may take seconds for one body."""
        while True:
            await trio.sleep(self.busy_interval)
            self._on_busy()

    async def _decode_and_submit(self, body: LargeBody) -> None:
        try:
            outcome = await self._decode(body)
        except (OSError, EOFError, ValueError, RuntimeError, trio.TooSlowError) as error:
            # The process ended, or does not answer, or the system can start no thread: the body is
            # not tried again.
            log.error("body_process_failed", reason=repr(error), bytes=len(body.data))  # noqa: TRY400
            await self._end_process()
            body.refuse(_not_decoded_error())
            return
        if isinstance(outcome, Problem):
            body.refuse(outcome)
            return
        body.data = b""
        await body.submit(outcome)

    async def _decode(self, body: LargeBody) -> Lines | Problem:
        if self.process is not None and self.process.ended:
            await self._end_process()
        if self.process is None:
            self.process = await trio.to_thread.run_sync(DecoderProcess)
        process = self.process
        with trio.fail_after(self.decode_timeout):
            # The thread is abandoned at the deadline, and ends when the socket is closed.
            return await trio.to_thread.run_sync(
                process.decode, body, self._limits, abandon_on_cancel=True
            )

    async def _end_process(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            await trio.to_thread.run_sync(process.end)


class DecoderProcess(ChildProcess):
    """The process that decodes bodies. The methods block."""

    def __init__(self) -> None:
        super().__init__("payloadd.ingress.decoder_process")

    def decode(self, body: LargeBody, limits: Limits) -> Lines | Problem:
        """Have a body decoded by the process. Raises OSError, EOFError, ValueError."""
        sock = self.socket
        data = memoryview(body.data)[body.start :]
        try:
            head = DecodeRequest(
                body.content_type, body.content_encoding, limits, len(data), document=body.document
            )
            send_head(sock, head)
            sock.sendall(data)
            match receive_answer(sock):
                case DecodeRefusal(code, detail, headers):
                    return Problem(code, detail, headers)
                case DecodeResult(payloads, size):
                    sizes = array(SIZES)
                    sizes.frombytes(receive(sock, payloads * sizes.itemsize))
                    return Lines(receive(sock, size), sizes)
        except msgspec.DecodeError as error:
            raise ValueError(str(error)) from error


def busy_error(detail: str) -> RefusedError:
    """Return the error for a 503 BUSY."""
    return RefusedError("BUSY", detail, _RETRY_AFTER)


def _not_decoded_error() -> RefusedError:
    return busy_error("the request could not be decoded in time; nothing of it was accepted")
