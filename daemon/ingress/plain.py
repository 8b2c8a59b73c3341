"""The lane for plain requests, in front of Hypercorn.

Hypercorn and Quart spend 1.6 ms on a request, most of it on what a plain POST does not
need. A connection starts here: while its requests are plain (see ``head.py``) and come one
at a time, they are answered by the same door in one write. At the first that is anything
else, be it wrong, the bytes that were read go back in front of the stream and Hypercorn has
the connection for good. So there is nothing here to get wrong about HTTP: when in doubt, it
is handed over.
"""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import TYPE_CHECKING

import trio

from daemon.ingress.door import Door, closes
from daemon.ingress.head import may_become_plain, parse
from daemon.ingress.problem import Problem

if TYPE_CHECKING:
    from daemon.config import Settings
    from daemon.health import Health
    from daemon.ingress.head import PlainRequest
    from daemon.ingress.stream import ClientStream
    from daemon.metrics import Metrics
    from daemon.pipeline.intake import Intake


class PlainLane:
    """Answers plain requests."""

    def __init__(
        self, intake: Intake, health: Health, metrics: Metrics, settings: Settings
    ) -> None:
        self._door = Door(intake, health, settings)
        self._health = health
        self._count = metrics.count_request
        self._second = 0
        self._date = b""

    async def run(self, stream: ClientStream) -> bool:
        """Serve a connection; returns whether Hypercorn has to go on with it."""
        try:
            while data := await stream.receive_some():
                while may_become_plain(data) and (more := await stream.receive_some()):
                    data += more
                request = parse(data, self._door.max_length)
                if request is None or len(data) > request.end:
                    stream.hand_over(data)
                    return True
                if not await self._serve(stream, request, data):
                    return True
        except trio.BrokenResourceError:
            pass  # the client has left, or does not read
        return False

    async def _serve(self, stream: ClientStream, request: PlainRequest, data: bytes) -> bool:
        """Answer one request; returns whether the lane has the connection after it."""
        due = stream.request_begins()
        try:
            self._door.check(request.headers)
            if len(data) < request.end:
                data = await self._read_rest(stream, request.end, data, due)
                if len(data) < request.end:
                    stream.hand_over(data, due)
                    return False
            accepted = await self._door.take(request.headers, data[request.start :])
        except Problem as problem:
            await self._refuse(stream, request, problem)
        else:
            self._count(202)
            last = closes(self._health, 202, has_body=True)
            await stream.send_answer(self._answer(accepted, closes=last), closes=last)
        stream.request_ends()
        return True

    async def _read_rest(self, stream: ClientStream, size: int, data: bytes, due: float) -> bytes:
        """Return ``size`` bytes that begin with ``data``, less if the client ends.

        Raises Problem TIMEOUT. What comes behind them stays in the socket.
        """
        # No list: a client that sends byte by byte would have a page of memory for each.
        found = bytearray(data)
        with trio.move_on_at(due):
            while len(found) < size and (piece := await stream.receive_some(size - len(found))):
                found += piece
            return bytes(found)
        raise self._door.too_slow()

    async def _refuse(self, stream: ClientStream, request: PlainRequest, problem: Problem) -> None:
        self._count(problem.status)
        last = closes(self._health, problem.status, has_body=request.end > request.start)
        await stream.send_answer(problem.raw(closes=last), closes=last)

    def _answer(self, accepted: bytes, *, closes: bool) -> bytes:
        """Return the whole 202."""
        return (
            b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\ndate: %s\r\n%s\r\n%s"
            % (len(accepted), self._now(), b"connection: close\r\n" if closes else b"", accepted)
        )

    def _now(self) -> bytes:
        """Return the date; it is written once a second, as it costs as much as the rest."""
        second = int(time.time())
        if second != self._second:
            self._second, self._date = second, formatdate(second, usegmt=True).encode("ascii")
        return self._date
