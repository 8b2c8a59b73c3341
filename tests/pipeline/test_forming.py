"""Which jobs become members of a batch."""

from __future__ import annotations

import uuid

import pytest

from payloadd.model.job import Job
from payloadd.model.layout import Layout, Layouts
from payloadd.pipeline.forming import FormingBatch

_DAY = 86_400_000
_NOON = 19_723 * _DAY + _DAY // 2
"""Noon of 1 January 2024, in milliseconds since 1970."""
_MINUTE = 60_000


def at(seq: int, milliseconds: int) -> Job:
    """Return a job that was accepted at this time."""
    id_ = uuid.UUID(int=(milliseconds << 80) | (0x7 << 76) | (0b10 << 62) | seq)
    return Job(seq, id_, b"12345\n", 1)


def members(template: str, *times: int) -> int:
    """Return how many jobs with these times of acceptance are in the first batch."""
    layouts = Layouts([(0, Layout(template, "", "none", alone=False))])
    jobs = [at(seq, milliseconds) for seq, milliseconds in enumerate(times, start=1)]
    return FormingBatch(jobs[0], layouts, 100, 1000).count_fitting(jobs)


@pytest.mark.parametrize(
    ("template", "step", "expected"),
    [
        pytest.param("{date}/{id}", _DAY // 2, 1, id="next-day"),
        pytest.param("{date}/{id}", _DAY // 2 - 1, 2, id="same-day"),
        pytest.param("{date}/{id}", -_DAY // 2, 2, id="begin-of-the-day"),
        pytest.param("{date}/{id}", -_DAY // 2 - 1, 1, id="day-before"),
        pytest.param("{date}/{hour}/{id}", 60 * _MINUTE, 1, id="next-hour"),
        pytest.param("{date}/{hour}/{id}", 60 * _MINUTE - 1, 2, id="same-hour"),
        pytest.param("{hour}/{id}", -1, 1, id="hour-before"),
        pytest.param("{hour}{minute}/{id}", _MINUTE, 1, id="next-minute"),
        pytest.param("{minute}/{id}", _MINUTE - 1, 2, id="same-minute"),
        pytest.param("{shard}/{host}/{id}", 400 * _DAY, 2, id="no-time-in-the-key"),
    ],
)
def test_a_batch_ends_at_the_borders_of_its_key(template: str, step: int, expected: int) -> None:
    """What is accepted after midnight would lie under the day before, or the other way round."""
    assert members(template, _NOON, _NOON + step) == expected


def test_a_batch_ends_where_the_clock_goes_back_and_returns() -> None:
    """Jobs on both sides of midnight would be in one object."""
    assert members("{date}/{id}", _NOON, _NOON + 1, _NOON - _DAY, _NOON + 2) == 2


def test_a_spilled_batch_goes_on_counting() -> None:
    """A spilled batch would be read back without its later members, or with too many."""
    layouts = Layouts([(0, Layout("{id}", "", "none", alone=False))])
    jobs = [at(seq, _NOON) for seq in range(1, 12)]
    forming = FormingBatch(jobs[0], layouts, 100, 60)
    forming.jobs += jobs[: forming.count_fitting(jobs[:4])]
    assert forming.spill() == jobs[:4]
    assert forming.jobs == []
    assert forming.count_fitting(jobs[4:]) == 6
    assert (forming.first, forming.last, forming.members, forming.bytes) == (1, 10, 10, 60)
    assert not forming.wants_more
    assert forming.count_fitting([at(11, _NOON)]) == 0
