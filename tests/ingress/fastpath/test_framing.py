"""The framing of bodies: lengths and chunks."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.ingress.fastpath import framing
from payloadd.ingress.fastpath.framing import ChunkedBody, SizedBody
from payloadd.ingress.problem import Problem
from payloadd.ingress.server.strict_input import StrictConnection
from tests.support.fuzz import known_cases, mutate, pieces_of

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from tests.support.fuzz import Fuzz

MOST = 10_000
NEXT = b"GET / HTTP/1.1\r\n\r\n"
_ODD = (
    *(b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"0", b"1", b"a", b"g", b" ", b";", b"=", b'"', b"\0"),
    *(b"0\r\n\r\n", b"X: y\r\n", b"Content-Length: 1\r\n", b"\xff", b"ffffffffffffffff", b" x"),
)


def fed(pieces: list[bytes]) -> tuple[bytes, bytes] | None:
    """Return a chunked body and the bytes behind it; None if it is incomplete. Raises Problem."""
    body = ChunkedBody(MOST)
    for number, piece in enumerate(pieces):
        rest = piece
        while rest:
            used = body.feed(rest)
            assert used > 0
            rest = rest[used:]
            if body.complete:
                return bytes(body.data), rest + b"".join(pieces[number + 1 :])
    return None


def test_a_body_with_a_length_ends_after_it() -> None:
    """The next request would be a part of the body, or the other way round."""
    body = SizedBody(5)
    assert (body.feed(b"ab"), body.complete, body.read_bytes, body.bulk) == (2, False, 3, False)
    assert (body.feed(b"cdefg"), body.complete, body.data) == (3, True, bytearray(b"abcde"))
    assert SizedBody(0).complete
    assert SizedBody(10**6).bulk
    assert SizedBody(10**9).read_bytes < 10**6


CHUNKS = b'5;a="b"\r\n\r\n\r\nx\r\n0003\r\nabc\r\n0\r\nX: \r\n\r\n'


@given(st.lists(st.integers(0, len(CHUNKS) + 5), max_size=8))
def test_chunks_may_be_cut_anywhere(cuts: list[int]) -> None:
    """A body in small packets would be misread: its end may lie in two of them."""
    data = CHUNKS + NEXT
    places = [0, *sorted(cuts), len(data)]
    pieces = [data[start:end] for start, end in pairwise(places)]
    assert fed(pieces) == (b"\r\n\r\nxabc", NEXT)


def test_chunks_in_single_bytes() -> None:
    """As above."""
    assert fed([bytes([one]) for one in CHUNKS + NEXT]) == (b"\r\n\r\nxabc", NEXT)


def test_a_body_of_many_empty_lines_is_parsed_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each empty line may be the end; thousands of them would hold the event loop."""
    monkeypatch.setattr(framing, "_PARTS_PER_STEP", 10)
    inside = b"\r\n\r\n" * 100
    body = ChunkedBody(MOST)
    data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(inside), inside)
    steps: list[int] = []
    while not body.complete:
        steps.append(body.feed(data[sum(steps) :]))
    assert sum(steps) == len(data)
    assert len(steps) == 11
    assert body.data == inside


def test_chunks_of_one_byte_are_parsed_in_steps() -> None:
    """A client could delay all others by milliseconds with each packet."""
    body = ChunkedBody(2**20)
    data = b"1\r\nx\r\n" * (64 * 2**10 // 6)
    steps: list[int] = []
    while sum(steps) < len(data):
        steps.append(body.feed(data[sum(steps) :]))
    assert max(steps) < 10_000
    assert body.data == b"x" * (len(data) // 6)
    few = ChunkedBody(2**20)
    large = b"fffff\r\n" + bytes(60_000)
    assert few.feed(large) == len(large)
    assert not few.bulk
    few.feed(bytes(10_000))
    assert few.bulk


@pytest.mark.parametrize("size", [MOST, MOST + 1])
def test_a_body_beyond_the_limit_is_too_large(size: int) -> None:
    """A body without a length would use any amount of memory."""
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (size, bytes(size))
    if size <= MOST:
        assert fed([chunks]) == (bytes(size), b"")
    else:
        with pytest.raises(Problem) as raised:
            fed([chunks])
        assert raised.value.code == "TOO_LARGE"


@pytest.mark.parametrize("start", [b"1;", b"0\r\nX: ", b"0\r\n"])
def test_endless_extensions_and_trailers_are_refused_and_not_kept(start: bytes) -> None:
    """A client could send for ever, and its trailers would be kept in memory."""
    body = ChunkedBody(MOST)
    body.feed(start)
    more = b"a" * 1000 if start != b"0\r\n" else b"A: b\r\n" * 170
    tracemalloc.start()
    try:
        with pytest.raises(Problem) as raised:
            [body.feed(more) for _ in range(10_000)]
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()
    assert raised.value.code == "MALFORMED"
    assert "trailers" in raised.value.detail


def test_an_early_end_is_malformed() -> None:
    """A part of a collection would be accepted as the whole."""
    for body in (SizedBody(1), ChunkedBody(1)):
        assert body.ended_early().code == "MALFORMED"


def outcome(read: Callable[[Any], tuple[bytes, bytes] | None], sent: bytes | list[bytes]) -> object:
    """Return what a parser makes of a body."""
    try:
        return read(sent) or "incomplete"
    except (Problem, h11.RemoteProtocolError):
        return "malformed"


def by_h11(data: bytes) -> tuple[bytes, bytes] | None:
    """Return what h11 reads from the strict buffer of our server. Raises RemoteProtocolError."""
    connection = StrictConnection()
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    connection.receive_data(head + data)
    connection.next_event()
    found = b""
    while isinstance(event := connection.next_event(), h11.Data):
        found += event.data
    return (found, connection.trailing_data[0]) if isinstance(event, h11.EndOfMessage) else None


def make_chunks(chance: random.Random) -> bytes:
    """Return a mostly valid chunked body."""
    body = chance.randbytes(chance.choice((0, 1, 5, 40)))
    chunks = b"".join(
        b"%x%b\r\n%b\r\n" % (len(one), chance.choice((b"", b";a=b", b";a", b';a="\\""')), one)
        for one in pieces_of(body, chance)
    )
    return chunks + b"0\r\n" + chance.choice((b"", b"X: y\r\n", b"A:\r\nB: c\r\n")) + b"\r\n"


def make_case(chance: random.Random) -> bytes:
    """Return a body with few faults; bytes of another request may follow it."""
    return mutate(make_chunks(chance), chance, _ODD) + chance.choice((b"", NEXT))


def test_random_bodies_are_neither_all_valid_nor_all_wrong() -> None:
    """The next test would test nothing."""
    outcomes = [outcome(by_h11, make_case(chance)) for chance in known_cases(300)]
    kinds = Counter("whole" if isinstance(one, tuple) else one for one in outcomes)
    assert min(kinds[one] for one in ("whole", "malformed", "incomplete")) >= 10, kinds


@pytest.mark.no_cover
def test_h11_reads_all_chunks_in_the_same_way(fuzz: Fuzz) -> None:
    """Two parsers would disagree about the end of a body: a request could be smuggled in it."""
    for chance in fuzz.cases():
        data = make_case(chance)
        expected, found = outcome(by_h11, data), outcome(fed, [*pieces_of(data, chance)])
        # llhttp finds a fault before its line is complete.
        early = expected == "incomplete" and found == "malformed"
        assert found == expected or early, data
