"""Large bodies, decoded one after the other in a process of their own.

A document of 16 MiB takes 30 to 500 ms, for which neither a task nor a thread may hold Python's
lock. The process is started with the first such body and ended when none has come for a while.
A body that kills it (or takes it longer than any body should) is refused; the next one gets a new
process.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from array import array
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from payloadd.errors import RefusedError
from payloadd.ingress.decoder_process import (
    SIZES,
    Decoded,
    Head,
    Refusal,
    receive,
    receive_answer,
    send_head,
)
from payloadd.ingress.problem import Problem, refused
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from payloadd.ingress.body import Limits

log = get_logger(__name__)

_SECONDS: Final = 30.0
"""How long one body may take. The worst of 16 MiB takes 3 s on one slow core."""
_MOST_OF_A_CLIENT: Final = 64
"""Bodies of one client that wait. Compressed, a few bytes wait as long as megabytes, and each one
keeps a connection that cannot be closed for another."""
_LONGEST_WAIT: Final = 10.0
"""Seconds that a body may be expected to wait."""
_IDLE_SECONDS: Final = 60.0
_BUSY_EVERY: Final = 0.5
_END_SECONDS: Final = 1.0
_RETRY_AFTER: Final = 2
_KEPT_ENVIRONMENT: Final = ("PATH", "PYTHON", "LANG", "LC_", "LD_LIBRARY_PATH", "COV", "TZ")
"""Beginnings of the variables that the process gets: none of those that hold secrets."""


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
    """Where in ``data`` it begins."""
    content_type: str | None
    content_encoding: str | None
    take: Callable[[Lines], Awaitable[None]]
    """Is awaited with what it holds."""
    refuse: Callable[[Problem | RefusedError], None]
    """Is called instead where it holds nothing that could be taken."""
    client: str | None
    """The address of its client: clients take turns."""
    since: float = field(default_factory=trio.current_time)


class LargeBodies:
    """The bodies that wait, and the process that decodes them."""

    def __init__(
        self,
        limits: Limits,
        patience: float,
        settled: Callable[[], Awaitable[None]],
        busy: Callable[[], object] = lambda: None,
    ) -> None:
        """Decode within ``limits``; ``settled`` returns when there is memory for the next.

        A body that has waited for ``patience`` seconds is refused: its client has given up.
        ``busy`` is called when a body's turn has come, and every half second of that turn.
        """
        self._busy = busy
        self._limits = limits
        self._patience = patience
        self._settled = settled
        # By client, the one whose turn is next first. Each body holds its memory already
        # (MAX_REQUEST_BYTES), and is one of a connection's requests.
        self._waiting: dict[str | None, deque[LargeBody]] = {}
        self._seconds = 0.0
        """What one body takes: a moving average."""
        self._news = trio.Event()
        self._process: _Process | None = None

    def add(self, body: LargeBody) -> None:
        """Decode a body when its turn comes; raises Problem BUSY where that would take too long."""
        own = self._waiting.get(body.client, ())
        # Clients take turns: none has more bodies decoded in front of this one than its own client.
        ahead = sum(min(len(bodies), len(own)) for bodies in self._waiting.values())
        if len(own) >= _MOST_OF_A_CLIENT or ahead * self._seconds > _LONGEST_WAIT:
            raise refused(busy("too many large requests; nothing of this one was taken"))
        self._waiting.setdefault(body.client, deque()).append(body)
        self._news.set()

    def _next(self) -> LargeBody:
        """Take out the next body of the client whose turn it is; the client goes to the end."""
        client = next(iter(self._waiting))
        bodies = self._waiting.pop(client)
        body = bodies.popleft()
        if bodies:
            self._waiting[client] = bodies
        return body

    async def run(self) -> None:
        """Decode for ever; when cancelled, end the process."""
        try:
            while True:
                with trio.move_on_after(_IDLE_SECONDS):
                    await self._news.wait()
                if not self._waiting:
                    await self._end_process()
                    await self._news.wait()
                self._news = trio.Event()
                while self._waiting:
                    self._busy()
                    await self._settled()
                    body = self._next()
                    if trio.current_time() - body.since > self._patience:
                        body.refuse(busy("too many large requests; nothing of this one was taken"))
                    else:
                        began = trio.current_time()
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(self._stay_busy)
                            await self._work_on(body)
                            nursery.cancel_scope.cancel()
                        self._seconds += (trio.current_time() - began - self._seconds) / 8
                    del body  # of which this frame would keep the bytes until the next one comes
        finally:
            with trio.CancelScope(shield=True):
                await self._end_process()

    async def _stay_busy(self) -> None:
        """Say again and again that there is work: the pipeline may take seconds for one body."""
        while True:
            await trio.sleep(_BUSY_EVERY)
            self._busy()

    async def _work_on(self, body: LargeBody) -> None:
        try:
            outcome = await self._decode(body)
        except (OSError, EOFError, ValueError, RuntimeError, trio.TooSlowError) as error:
            # The process ended, or does not end, or the system has no thread to give: the body is
            # not tried again.
            log.error("body_process_failed", reason=repr(error), bytes=len(body.data))  # noqa: TRY400
            await self._end_process()
            body.refuse(_not_decoded())
            return
        if isinstance(outcome, Problem):
            body.refuse(outcome)
            return
        body.data = b""
        await body.take(outcome)

    async def _decode(self, body: LargeBody) -> Lines | Problem:
        if self._process is not None and self._process.ended:
            await self._end_process()
        if self._process is None:
            self._process = await trio.to_thread.run_sync(_Process)
        process = self._process
        with trio.fail_after(_SECONDS):
            # Abandoned at the deadline: the thread ends with the socket.
            return await trio.to_thread.run_sync(
                process.decode, body, self._limits, abandon_on_cancel=True
            )

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await trio.to_thread.run_sync(process.end)


class _Process:
    """The process and the socket that leads into it. Methods block."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "payloadd.ingress.decoder_process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={
                    name: text
                    for name, text in os.environ.items()
                    if name.startswith(_KEPT_ENVIRONMENT)
                },
                start_new_session=True,
            )
        self._socket = ours

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def decode(self, body: LargeBody, limits: Limits) -> Lines | Problem:
        """Have a body decoded. Raises OSError, EOFError, ValueError."""
        sock = self._socket
        data = memoryview(body.data)[body.start :]
        try:
            head = Head(body.content_type, body.content_encoding, limits, len(data))
            send_head(sock, head)
            sock.sendall(data)
            match receive_answer(sock):
                case Refusal(code, detail, headers):
                    return Problem(code, detail, headers)
                case Decoded(payloads, size):
                    sizes = array(SIZES)
                    sizes.frombytes(receive(sock, payloads * sizes.itemsize))
                    return Lines(receive(sock, size), sizes)
        except msgspec.DecodeError as error:
            raise ValueError(str(error)) from error

    def end(self) -> None:
        """End the process: it does by itself when its socket closes, unless it is busy."""
        # A thread that is blocked on the socket wakes up.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def busy(detail: str) -> RefusedError:
    """Return the 503 BUSY."""
    return RefusedError("BUSY", detail, _RETRY_AFTER)


def _not_decoded() -> RefusedError:
    return busy("the request could not be decoded in time; nothing of it was taken")
