"""Frames of HTTP/2, cut into pieces: nothing is lost, and no piece is long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.ingress.server.http2_input import FloodError, FrameBudget, FrameCutter


def frame(kind: int, length: int) -> bytes:
    """Return a frame with a body of this length."""
    return length.to_bytes(3, "big") + bytes([kind, 0, 0, 0, 0, 1]) + b"x" * length


def pieces(chunks: list[bytes]) -> list[bytes]:
    """Return what comes out when these chunks go in one after the other."""
    cutter = FrameCutter()
    found = []
    for chunk in chunks:
        cutter.add(chunk)
        while piece := cutter.next_piece():
            found.append(piece)
    return found


FRAMES = st.lists(
    st.tuples(st.sampled_from([0, 1, 2, 3, 4, 6, 8, 9, 99]), st.integers(0, 300)).map(
        lambda pair: frame(*pair)
    ),
    max_size=60,
)


@given(FRAMES, st.lists(st.integers(0, 5000), max_size=10))
def test_nothing_is_lost_wherever_it_is_cut(frames: list[bytes], cuts: list[int]) -> None:
    """h2 would see other frames than the client has sent."""
    whole = b"".join(frames)
    ends = sorted(min(cut, len(whole)) for cut in cuts)
    chunks = [whole[start:end] for start, end in zip([0, *ends], [*ends, len(whole)], strict=True)]
    assert b"".join(pieces(chunks)) == whole


@given(st.integers(0, 8))
def test_a_header_that_is_not_complete_is_held_back(size: int) -> None:
    """What a frame costs could not be known before it is handed over."""
    assert pieces([frame(6, 8)[:size]]) == []


@pytest.mark.parametrize(
    ("kind", "length", "most"), [(6, 8, 32), (8, 4, 32), (4, 6, 32), (1, 20, 4), (0, 0, 32)]
)
def test_small_frames_go_a_few_at_a_time(kind: int, length: int, most: int) -> None:
    """One call would keep the event loop for as long as 64 KiB of them take."""
    small = frame(kind, length)
    found = pieces([small * 200])
    assert {len(piece) for piece in found[:-1]} == {most * len(small)}


def test_full_data_frames_go_64_kib_at_a_time() -> None:
    """A large body would take four times as many turns as it has to."""
    assert len(pieces([frame(0, 16_384) * 8])[0]) == 4 * (16_384 + 9)


@pytest.mark.parametrize(
    "said",
    [
        frame(0, 16_385)[:9],
        frame(4, 65 * 6)[:9],
        frame(1, 16_384) + frame(9, 16_384) + frame(9, 1),
    ],
)
def test_what_costs_too_much_is_refused(said: bytes) -> None:
    """h2 would keep all of it before it looks at the length."""
    with pytest.raises(FloodError):
        pieces([said])


def test_header_blocks_are_counted_one_by_one() -> None:
    """A connection in use for long would be taken for a flood."""
    found = pieces([(frame(1, 16_000) + frame(9, 16_000)) * 20])
    assert len(b"".join(found)) == 20 * 2 * 16_009


# --- the budget of frames without a request or data ----------------------------------------------

END_STREAM = 1


def spent(*sent: tuple[int, int, int]) -> int:
    """Return what frames with these types, lengths and flags take from the budget."""
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
def test_frames_that_bring_nothing_are_charged(kind: int) -> None:
    """A client could have the daemon answer PING frames for ever."""
    assert spent((kind, 8, 0)) == 1


def test_data_and_the_end_of_a_body_are_free() -> None:
    """A large body, or many small ones, would be taken for a flood."""
    assert spent((0, 100, 0), (0, 1, 0), (0, 0, END_STREAM)) == 0
    assert spent((0, 0, 0)) == 1


def test_a_budget_is_exceeded() -> None:
    """The limit would be none."""
    budget = FrameBudget(5)
    for _ in range(200):
        budget.spend(1, 5)
    with pytest.raises(FloodError):
        budget.spend(1, 5)


def test_a_budget_grows_with_time() -> None:
    """A client that asks for a sign of life each second would lose its connection some time."""
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


def test_a_client_may_send_some_frames_for_each_request() -> None:
    """A busy client that updates its windows for each answer would lose its connection."""
    budget = FrameBudget(0)
    for _ in range(1000):
        budget.spend(spent((1, 20, 4), *[(8, 4, 0)] * 10, (6, 8, 0), (4, 0, 1)), 0)
