"""Cutting HTTP/2 frames into pieces, and the budget of frames without a request or data."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.ingress.server.http2_input import FloodError, FrameBudget, FrameCutter


def frame(kind: int, length: int) -> bytes:
    """Return a frame with a body of this length."""
    return length.to_bytes(3, "big") + bytes([kind, 0, 0, 0, 0, 1]) + b"x" * length


def pieces(chunks: list[bytes]) -> list[bytes]:
    """Return the pieces of these chunks, which are added one after the other."""
    cutter = FrameCutter()
    found = []
    for chunk in chunks:
        cutter.add(chunk)
        while piece := cutter.next_piece():
            found.append(piece)
    return found


FRAMES = st.lists(
    st.tuples(st.sampled_from([0, 1, 2, 3, 4, 6, 8, 99]), st.integers(0, 300)).map(
        lambda pair: frame(*pair)
    ),
    max_size=60,
)


@given(FRAMES, st.lists(st.integers(0, 5000), max_size=10))
def test_no_byte_is_lost_by_cutting(frames: list[bytes], cuts: list[int]) -> None:
    """h2 would get other frames than the client has sent."""
    whole = b"".join(frames)
    ends = sorted(min(cut, len(whole)) for cut in cuts)
    chunks = [whole[start:end] for start, end in zip([0, *ends], [*ends, len(whole)], strict=True)]
    assert b"".join(pieces(chunks)) == whole


@given(st.integers(0, 8))
def test_an_incomplete_frame_header_is_kept_back(size: int) -> None:
    """The cost of a frame would be unknown when it is passed on."""
    assert pieces([frame(6, 8)[:size]]) == []


@pytest.mark.parametrize(
    ("kind", "length", "most"), [(6, 8, 32), (8, 4, 32), (4, 6, 32), (1, 20, 4), (0, 0, 32)]
)
def test_small_frames_are_passed_on_a_few_at_a_time(kind: int, length: int, most: int) -> None:
    """One call with 64 KiB of small frames would block the event loop."""
    small = frame(kind, length)
    found = pieces([small * 200])
    assert {len(piece) for piece in found[:-1]} == {most * len(small)}


def test_full_data_frames_are_passed_on_64_kib_at_a_time() -> None:
    """A large body would wait for its turn four times as often as needed."""
    assert len(pieces([frame(0, 16_384) * 8])[0]) == 4 * (16_384 + 9)


@pytest.mark.parametrize(
    "sent",
    [
        frame(0, 16_385)[:9],
        frame(4, 65 * 6)[:9],
        frame(1, 16_384) + frame(9, 16_384) + frame(9, 1),
        frame(1, 4) + frame(9, 4) * 9,
    ],
)
def test_frames_and_header_blocks_that_are_too_long_are_refused(sent: bytes) -> None:
    """h2 would store all of it before it checks the length."""
    with pytest.raises(FloodError):
        pieces([sent])


def test_a_header_block_may_have_eight_continuation_frames() -> None:
    """A client with small frames would lose its connection."""
    block = frame(1, 4) + frame(9, 4) * 8
    assert b"".join(pieces([block * 2])) == block * 2


def test_each_header_block_is_counted_separately() -> None:
    """A connection that is used for long would be treated as a flood."""
    found = pieces([(frame(1, 16_000) + frame(9, 16_000)) * 20])
    assert len(b"".join(found)) == 20 * 2 * 16_009


# --- the budget of frames without a request or data ----------------------------------------------

END_STREAM = 1


def spent(*sent: tuple[int, int, int]) -> int:
    """Return the charge of frames with these types, lengths and flags."""
    cutter = FrameCutter()
    for kind, length, flags in sent:
        made = bytearray(frame(kind, length))
        made[4] = flags
        cutter.add(bytes(made))
        while cutter.next_piece():
            pass
    charge = cutter.pop_charge()
    assert cutter.pop_charge() == 0
    return charge


@pytest.mark.parametrize("kind", [2, 4, 6, 8, 16, 99])
def test_frames_without_a_request_or_data_are_charged(kind: int) -> None:
    """A client could make the daemon answer PING frames for ever."""
    assert spent((kind, 8, 0)) == 1


def test_data_and_the_end_of_a_body_are_free() -> None:
    """A large body, or many small ones, would be treated as a flood."""
    assert spent((0, 100, 0), (0, 1, 0), (0, 0, END_STREAM)) == 0
    assert spent((0, 0, 0)) == 1


def test_a_budget_can_be_exceeded() -> None:
    """A flood would have no limit."""
    budget = FrameBudget(5)
    for _ in range(200):
        budget.spend(1, 5)
    with pytest.raises(FloodError):
        budget.spend(1, 5)


def test_a_budget_grows_with_time() -> None:
    """A client that sends a PING each second would lose its connection at some time."""
    budget = FrameBudget(0)
    for second in range(10_000):
        budget.spend(90, second)


def test_requests_that_are_reset_exceed_the_budget() -> None:
    """A client could begin requests at the speed of its network (CVE-2023-44487)."""
    budget = FrameBudget(0)
    for _ in range(40):
        budget.spend(spent((1, 20, 4), (3, 4, 0)), 0)
    with pytest.raises(FloodError):
        budget.spend(spent((1, 20, 4), (3, 4, 0)), 0)


@pytest.mark.parametrize("seconds", [1, 1000])
def test_a_client_may_cancel_all_its_requests_now_and_then(seconds: int) -> None:
    """A client whose requests time out would lose its connection."""
    budget = FrameBudget(0)
    for second in range(seconds):
        budget.spend(spent(*[(1, 20, 4)] * 16), second)
        budget.spend(spent(*[(3, 4, 0)] * 16), second)


def test_each_request_pays_for_some_frames() -> None:
    """A busy client that updates its windows for each answer would lose its connection."""
    budget = FrameBudget(0)
    for _ in range(1000):
        budget.spend(spent((1, 20, 4), *[(8, 4, 0)] * 10, (6, 8, 0), (4, 0, 1)), 0)
