"""How the body of one request is received."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from payloadd.ingress.fastpath.body_receiver import BodyReceiver
from payloadd.ingress.fastpath.head import FastPathRequest, Special
from payloadd.ingress.problem import Problem
from payloadd.ingress.request_memory import RequestMemory
from payloadd.ingress.submission import PostHeaders

if TYPE_CHECKING:
    from collections.abc import Callable

MOST = 4000
DUE = 7.0
CHUNKED = Special(chunked=True)
HEADERS = PostHeaders(None, None, None)


class Connection:
    """Records what a receiver asks its connection for; it is the stream, too."""

    def __init__(self, *reads: bytes | None) -> None:
        self.asked: list[object] = []
        self.sent: list[bytes] = []
        self.reads = [*reads]
        self.has_room = True
        self.timeout: Callable[[], object] | None = None
        self.count: Callable[[], int] = int
        self.transport = SimpleNamespace(send_now=self.send)
        self.state = SimpleNamespace(due=DUE)

    def send(self, data: bytes) -> bool:
        """Record sent bytes."""
        self.sent.append(data)
        return self.has_room

    def receive_now(self, _most: int) -> bytes | None:
        """Return the next read."""
        return self.reads.pop(0)

    def start_body_timeout(
        self, due: float, late: Callable[[], object], received: Callable[[], int]
    ) -> None:
        """Record the timeout."""
        assert due == DUE
        assert self.timeout is None
        self.timeout, self.count = late, received

    def stop_body_timeout(self) -> None:
        """Remove the timeout."""
        self.timeout = None

    def await_input(self, *, bulk: bool) -> None:
        """Record a wait for input."""
        self.asked.append(("input", bulk))

    def await_memory(self) -> None:
        """Record a wait for memory."""
        self.asked.append("memory")

    def await_turn(self) -> None:
        """Record a wait for a turn."""
        self.asked.append("turn")

    def keep_rest(self, rest: bytes) -> None:
        """Record the bytes of the next request."""
        self.asked.append(("rest", rest))

    def on_body(self, data: bytearray, charge: int) -> None:
        """Record a complete body."""
        self.asked.append(("body", bytes(data), charge))

    def on_body_refused(self, problem: Problem) -> None:
        """Record a refusal."""
        self.asked.append(problem.code)


def receiver_of(
    connection: Connection,
    special: Special | None,
    size: int = 0,
    memory: RequestMemory | None = None,
) -> BodyReceiver:
    """Return a receiver of a body, of which 10 bytes of the head are known."""
    submitter = SimpleNamespace(
        max_length=MOST,
        memory=memory or RequestMemory(MOST, MOST),
        timeout_problem=lambda: Problem("TIMEOUT", "late"),
    )
    owner: Any = SimpleNamespace(submitter=submitter, requests=SimpleNamespace(body_bytes=0))
    stream: Any = connection
    request = FastPathRequest(HEADERS, 10, 10 + size, special=special)
    return BodyReceiver(request, 10, owner, stream, connection)


async def test_a_body_with_a_length_is_read_until_it_is_complete() -> None:
    """A body in two packets would be cut."""
    connection = Connection(None, b"cd")
    receiver = receiver_of(connection, None, 4)
    receiver.receive(b"ab")
    assert (connection.asked, connection.count()) == ([("input", False)], 12)
    receiver.read()  # a false report of input
    receiver.read()
    assert connection.asked[1:] == [("body", b"abcd", 4)]
    assert (connection.timeout, connection.sent) == (None, [])


async def test_the_bytes_behind_a_chunked_body_are_of_the_next_request() -> None:
    """The next request would be lost, or be a part of this one."""
    connection = Connection()
    receiver_of(connection, CHUNKED).receive(b"2\r\nab\r\n0\r\n\r\nPOST ")
    assert connection.asked == [("rest", b"POST "), ("body", b"ab", 2)]


async def test_a_client_that_expects_a_100_gets_one() -> None:
    """A client would wait for its permission, or read a second 100 as its answer."""
    connection = Connection(b"a")
    receiver = receiver_of(connection, Special(expects=True), 3)
    receiver.receive(b"")
    receiver.read()
    assert connection.sent == [b"HTTP/1.1 100 Continue\r\n\r\n"]


async def test_a_client_that_reads_no_100_is_lost() -> None:
    """Half of a 100 would stay in front of the answer."""
    connection = Connection()
    connection.has_room = False
    with pytest.raises(trio.BrokenResourceError):
        receiver_of(connection, Special(expects=True), 3).receive(b"")


async def test_without_memory_nothing_is_read_until_there_is_some() -> None:
    """The bound of all requests together would be exceeded."""
    memory = RequestMemory(MOST, MOST)
    assert memory.try_acquire(MOST)
    connection = Connection()
    receiver = receiver_of(connection, Special(expects=True), 5, memory)
    receiver.receive(b"ab")
    assert (connection.asked, connection.sent) == (["memory"], [])
    memory.release(MOST)
    assert connection.asked == ["memory", "turn"]
    receiver.resume()
    assert connection.asked[2:] == [("input", False)]
    receiver.release()
    assert (memory.used, connection.timeout) == (0, None)


async def test_a_body_in_many_chunks_is_parsed_in_turns() -> None:
    """One packet of a client would hold the event loop."""
    connection = Connection()
    receiver = receiver_of(connection, CHUNKED)
    receiver.receive(b"1\r\na\r\n" * 2000 + b"0\r\n\r\n")
    assert connection.asked == ["turn"]
    receiver.resume()
    assert connection.asked[-1] == ("body", b"a" * 2000, 2000)


@pytest.mark.parametrize(
    ("received", "reads", "code"),
    [
        (b"x", (), "MALFORMED"),
        (b"1\r\n", (b"",), "MALFORMED"),
        (b"1000\r\n" + b"a" * 4096, (), "TOO_LARGE"),
    ],
)
async def test_a_body_that_is_not_valid_is_refused(
    received: bytes, reads: tuple[bytes, ...], code: str
) -> None:
    """A part of a request would be accepted."""
    connection = Connection(*reads)
    receiver = receiver_of(connection, CHUNKED)
    receiver.receive(received)
    for _ in reads:
        receiver.read()
    assert connection.asked[-1] == code


async def test_a_late_body_is_refused() -> None:
    """A client that sends a byte a second would keep its connection for ever."""
    connection = Connection()
    receiver_of(connection, None, 4).receive(b"a")
    assert connection.timeout is not None
    connection.timeout()
    assert connection.asked[-1] == "TIMEOUT"
