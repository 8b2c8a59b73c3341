"""Envelopes leave payloads verbatim, and count towards the sizes of objects."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.model import envelope as module
from payloadd.model.envelope import Envelope
from payloadd.model.job import split, split_lines

ENVELOPE = Envelope(b'{"name":null,"payload":')
PAYLOADS = st.lists(
    st.one_of(st.text(), st.integers(), st.just('}\n{"name":null,"payload":')).map(
        lambda value: json.dumps(value, ensure_ascii=False).encode()
    ),
    min_size=1,
)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copy few bytes at a time, so that windows begin and end anywhere."""
    monkeypatch.setattr(module, "_WINDOW", 16)


@given(PAYLOADS)
def test_both_ways_to_add_envelopes_are_equal(payloads: list[bytes]) -> None:
    """The objects of large and of small requests would differ."""
    lines = b"".join(ENVELOPE.prefix + payload + b"}\n" for payload in payloads)
    assert ENVELOPE.lines(payloads) == lines
    assert ENVELOPE.around_lines(b"\n".join([*payloads, b""])) == lines
    assert len(lines) == sum(map(len, payloads)) + len(payloads) * (1 + ENVELOPE.size)


@given(PAYLOADS, st.integers(1, 4), st.integers(1, 200))
def test_objects_are_cut_by_their_size_with_envelopes(
    payloads: list[bytes], most: int, most_bytes: int
) -> None:
    """Objects would be larger than BATCH_MAX_BYTES."""
    groups = split(payloads, most, most_bytes, ENVELOPE.size)
    wrapped = [len(ENVELOPE.lines(group)) for group in groups]
    assert all(
        size <= most_bytes or len(group) == 1 for size, group in zip(wrapped, groups, strict=True)
    )
    text = b"\n".join([*payloads, b""])
    cut = split_lines(text, [*map(len, payloads)], most, most_bytes, ENVELOPE.size)
    assert [len(ENVELOPE.around_lines(lines)) for lines, _ in cut] == wrapped
