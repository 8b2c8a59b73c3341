"""Hypercorn's HTTP/2 protocol, with small answers in one frame of each kind and in one write.

Hypercorn sends the head, the body and the end of an answer on their own, and a task chooses whose
body is next. An answer that fits into one frame and into the client's windows needs no such choice:
its frames are made at once, and sent together with those of other answers.

Requests after the first one of a connection may be refused (``open_requests``). PRIORITY frames are
ignored. h2 remembers a few hundred closed streams instead of 65,536, which is megabytes.
"""

from __future__ import annotations

import re
from contextlib import suppress
from time import time
from typing import TYPE_CHECKING, Any, Final

import h2.errors
import h2.exceptions
import trio
from h2.utilities import SizeLimitDict
from hypercorn.protocol.events import Body, EndBody, Request, Response, StreamClosed
from hypercorn.protocol.h2 import H2Protocol, StreamBuffer
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.utils import filter_pseudo_headers, suppress_body
from hyperframe.frame import DataFrame, HeadersFrame
from priority.priority import DeadlockError

from payloadd.ingress.problem import CONTENT_TYPE, head_too_large
from payloadd.ingress.server.header_blocks import RememberingDecoder, RememberingEncoder
from payloadd.ingress.server.http2_input import LARGEST_HEADER_LIST, HeadTooLargeError
from payloadd.ingress.server.protocol_parts import parts_of

if TYPE_CHECKING:
    from h2.events import PriorityUpdated, RequestReceived
    from hypercorn.protocol import ProtocolWrapper
    from hypercorn.protocol.events import Event as StreamEvent

    from payloadd.ingress.server.client_stream import ClientStream
    from payloadd.ingress.server.open_requests import OpenRequests

_CLOSED_STREAMS: Final = 512
"""Closed streams that h2 remembers for each connection. h2 answers a late frame of a stream that
it has forgotten by closing the connection."""
_MOST_PSEUDO_HEADERS: Final = 5
"""Of a request: four, and ``:protocol``. They come first, as h2 checks (RFC 9113, section 8.3)."""
_BEYOND_ASCII: Final = re.compile(rb"[\x80-\xff]")


class _EndedStream:
    """Drop the frames of a stream that has ended on this side."""

    async def handle(self, event: object) -> None:
        """Do nothing."""


class _Streams(dict[int, Any]):
    """The streams of a connection. Hypercorn fails with KeyError for data of an ended stream."""

    def __missing__(self, stream_id: int) -> _EndedStream:
        """Return a stream that drops all events."""
        return _EndedStream()


class _Stream(HTTPStream):
    """One request. An answer that is one message after its head is passed on as a whole.

    Hypercorn makes three events of such an answer, checks the headers of the app, and writes to a
    log of accesses, which is off.
    """

    _head: Any = None
    """The message with the head of the answer, until the next message."""
    protocol: Http2
    """The protocol of its connection."""

    async def app_send(self, message: Any) -> None:  # noqa: ANN401 - ASGI's types
        """Pass on a message of the app; None says that the app has ended."""
        head, self._head = self._head, None
        if head is None:
            if (
                message is not None
                and message["type"] == "http.response.start"
                and self.state is ASGIHTTPState.REQUEST
            ):
                self._head = message
            else:
                await super().app_send(message)
        elif message is None or message.get("more_body") or "body" not in message:
            await super().app_send(head)
            await super().app_send(message)
        else:
            self.state = ASGIHTTPState.CLOSED
            no_body = suppress_body(self.scope["method"], head["status"])
            body = b"" if no_body else message["body"]
            answer = Response(self.stream_id, head["headers"], head["status"])
            await self.protocol.send_whole(answer, body)
            await self.send(StreamClosed(self.stream_id))


class Http2(H2Protocol):
    """The HTTP/2 protocol of one connection, with limits that Hypercorn and h2 lack."""

    def __init__(
        self, wrapper: ProtocolWrapper, client: ClientStream, open_requests: OpenRequests
    ) -> None:
        """Replace the protocol of ``wrapper``, of which no byte has been processed."""
        super().__init__(*parts_of(wrapper))
        self._client = client
        self._open_requests = open_requests
        self._too_large = 0
        """The stream of the request whose headers expand to too much, 0 without one."""
        self._answers: dict[int, tuple[Response, bytes]] = {}
        """Answers that have begun, and that are held back until they are complete."""
        self._second = 0
        self._added: list[tuple[bytes, bytes]] = []
        connection = self.connection
        # The headers of answers come from the app, and are correct.
        connection.config.validate_outbound_headers = False
        connection.config.normalize_outbound_headers = False
        # Hypercorn announces this limit to the client, but does not enforce it.
        self._decoder = connection.decoder = RememberingDecoder(LARGEST_HEADER_LIST)
        connection.encoder = RememberingEncoder()
        connection._closed_streams = SizeLimitDict(size_limit=_CLOSED_STREAMS)  # noqa: SLF001
        connection._frame_dispatch_table[HeadersFrame] = self._receive_headers  # noqa: SLF001
        self.streams = _Streams()

    async def send_task(self) -> None:
        """Send answers, and choose whose body is next, until the connection ends."""
        while not self.closed:
            await self._flush()
            try:
                stream_id = next(self.priority)
            except DeadlockError:
                await self.has_data.wait()
                await self.has_data.clear()
            else:
                await self._send_data(stream_id)

    def refuse_head(self, stream_id: int) -> None:
        """Answer a request whose head is too large with a 400; the connection ends after it.

        The header block is not decoded, so further ones could not be decoded either (RFC 9113,
        section 10.5.1). h2 does not know the stream: the frames are made here.
        """
        connection = self.connection
        if stream_id % 2 == 0 or stream_id <= connection.highest_inbound_stream_id:
            return  # the head of no request: trailers, or a protocol error
        connection.highest_inbound_stream_id = stream_id  # for GOAWAY: it needs no repetition
        problem = head_too_large()
        self._client.note_own_answer(problem)
        body = problem.document()
        window = connection.remote_settings.initial_window_size
        if min(window, connection.outbound_flow_control_window) < len(body):
            body = b""
        connection.outbound_flow_control_window -= len(body)  # answers may follow
        named = {"content-type": CONTENT_TYPE, **problem.headers} if body else problem.headers
        headers = [(b":status", b"%d" % problem.status)]
        headers += [(name.lower().encode(), text.encode()) for name, text in named.items()]
        head = HeadersFrame(stream_id, flags=["END_HEADERS"])
        head.data = connection.encoder.encode([*headers, *self._more_headers()])
        end = DataFrame(stream_id, body, flags=["END_STREAM"])
        connection._data_to_send += head.serialize() + end.serialize()  # noqa: SLF001

    def _receive_headers(self, frame: HeadersFrame) -> Any:  # noqa: ANN401 - h2's own types
        """Pass a header block to h2; if its headers expand to too much, drop all that follows."""
        connection, block = self.connection, bytes(frame.data)
        # Trailers, whose stream exists, have rules of their own (RFC 9113, section 8.1).
        is_request = frame.stream_id not in connection.streams
        connection.config.validate_inbound_headers = not (
            is_request and block in self._decoder.valid
        )
        try:
            found = connection._receive_headers_frame(frame)  # noqa: SLF001
        except h2.exceptions.DenialOfServiceError:
            # With the error, h2 would drop the requests before this one, too.
            self._too_large = frame.stream_id
            connection.incoming_buffer._data.clear()  # noqa: SLF001
            return [], []
        if is_request:
            self._decoder.note_valid(block)
        return found

    def check_heads(self) -> None:
        """Raise HeadTooLargeError if the headers of a request have expanded to too much.

        Call this after each piece of input: no further one can be decoded.
        """
        if self._too_large:
            raise HeadTooLargeError(self._too_large)

    async def flush(self) -> None:
        """Send the frames that wait for ``send_task``."""
        await self._flush()

    async def stream_send(self, event: StreamEvent) -> None:
        """Send a part of an answer, or hold it back until the answer is complete."""
        stream_id = event.stream_id
        if isinstance(event, Response):
            # Hypercorn's own answers have a header that HTTP/2 forbids (RFC 9113, section 8.2.2).
            event.headers[:] = [one for one in event.headers if one[0] != b"connection"]
            self._answers[stream_id] = event, b""
            return
        held = self._answers.get(stream_id)
        if isinstance(event, EndBody) and held is not None:
            del self._answers[stream_id]
            await self.send_whole(*held)
        elif isinstance(event, Body) and held is not None:
            if not held[1] and self._fits(stream_id, len(event.data)):
                self._answers[stream_id] = held[0], event.data
            else:
                del self._answers[stream_id]
                await self._send_parts(*held, event)
        elif isinstance(event, Body | EndBody):
            await self._send_in_time(event)
        else:
            await super().stream_send(event)

    def _fits(self, stream_id: int, size: int) -> bool:
        """Return whether a body can be sent in one frame."""
        connection = self.connection
        try:
            window = connection.local_flow_control_window(stream_id)
        except h2.exceptions.ProtocolError:
            return True  # the client has cancelled the request: nothing is sent
        return size <= min(window, connection.max_outbound_frame_size)

    async def send_whole(self, head: Response, body: bytes) -> None:
        """Send a whole answer."""
        stream_id = head.stream_id
        if not self._fits(stream_id, len(body)):  # another answer has used the window meanwhile
            await self._send_parts(head, body, EndBody(stream_id=stream_id))
            return
        connection = self.connection
        try:
            headers = [(b":status", b"%d" % head.status_code), *head.headers, *self._more_headers()]
            connection.send_headers(stream_id, headers, end_stream=not body)
            if body:
                connection.send_data(stream_id, body, end_stream=True)
        except h2.exceptions.ProtocolError:
            return  # the client has cancelled the request
        if self._client.transport.is_sent:
            await self.has_data.set()  # answers of one commit are sent together
        else:
            await self._flush()  # the client does not read: its next requests have to wait

    def _more_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that Hypercorn adds: the date, which is formatted once a second."""
        second = int(time())
        if second != self._second:
            self._second = second
            self._added = self.config.response_headers("h2")
        return self._added

    async def _send_parts(self, head: Response, body: bytes, event: StreamEvent) -> None:
        """Send an answer as Hypercorn does."""
        stream_id = head.stream_id
        if stream_id not in self.stream_buffers:
            self.stream_buffers[stream_id] = StreamBuffer(self.context.event_class)
            self.priority.insert_stream(stream_id)
            self.priority.block(stream_id)
        first = [Body(stream_id=stream_id, data=body)] if body else []
        await self._send_in_time(head, *first, event)

    async def _send_in_time(self, *events: StreamEvent) -> None:
        """Send parts of an answer; end the connection of a client that does not read them."""
        state = self._client.state
        with state.sending(), trio.move_on_after(state.request_timeout) as limit:
            for event in events:
                await super().stream_send(event)
        if limit.cancelled_caught:
            await self._client.aclose()

    async def _create_stream(self, request: RequestReceived) -> None:
        """Start the app for a request, or refuse the request.

        Hypercorn also makes a buffer for the answer; few answers need it (see ``_send_parts``).
        """
        stream_id = request.stream_id
        if self._open_requests.refuses(len(self.streams)):
            self.connection.reset_stream(stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
            return
        pseudo = dict(request.headers[:_MOST_PSEUDO_HEADERS])
        method = pseudo[b":method"].decode("latin-1").upper()
        if method == "CONNECT":
            await super()._create_stream(request)
            return
        path = pseudo[b":path"]
        if not path.isascii():
            # No URI (RFC 3986, section 2). Hypercorn would fail, and end the whole connection.
            path = _BEYOND_ASCII.sub(lambda byte: b"%%%02X" % ord(byte[0]), path)
        stream = self.streams[stream_id] = _Stream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            stream_id,
        )
        stream.protocol = self
        await stream.handle(
            Request(
                stream_id=stream_id,
                headers=filter_pseudo_headers(request.headers),
                http_version="2",
                method=method,
                raw_path=path,
                state=self.connection_state,
            )
        )

    async def _close_stream(self, stream_id: int) -> None:
        if self._answers.pop(stream_id, None) is not None:
            # The app has failed within its answer.
            with suppress(h2.exceptions.ProtocolError):
                self.connection.reset_stream(stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
        await super()._close_stream(stream_id)

    async def _priority_updated(self, event: PriorityUpdated) -> None:
        """Do nothing: RFC 9113, section 5.3.2, deprecates the priorities of HTTP/2's first version.

        Hypercorn keeps a tree of up to 1,000 streams that need not exist, and one frame of 14 bytes
        can move all of them.
        """
