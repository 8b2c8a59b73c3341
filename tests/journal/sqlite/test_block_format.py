"""The format of a block: what was packed is read again, and each damaged byte is noticed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from payloadd.journal.sqlite.block_format import NewBlock, lost_rows, pack, read_head, rows_of
from payloadd.journal.sqlite.job_rows import is_surely_sound
from payloadd.model.job import Job
from tests.support.journal import id_of

if TYPE_CHECKING:
    from payloadd.journal.sqlite.job_rows import Row

_JOBS = st.lists(
    st.builds(
        lambda stream, count, lines, payloads: Job(
            stream << 48 | count, id_of(stream * 1000 + count), lines, payloads
        ),
        st.integers(0, 3),
        st.integers(1, 40),
        st.binary(max_size=9) | st.just(b"x" * 5000),
        st.integers(1, 2**31),
    ),
    min_size=1,
    max_size=20,
    unique_by=lambda job: job.seq,
).map(sorted)


def block(count: int = 3) -> NewBlock:
    """Return the block 7 with jobs of two streams."""
    jobs = [Job(number, id_of(number), b"%d\n" % number, 1) for number in range(1, count)]
    return pack(7, [*jobs, Job(1 << 48 | 9, id_of(9), b"nine\n", 1)])


def read(one: NewBlock) -> list[Row]:
    """Return the rows of a block, as they are read."""
    head = read_head(one.number, one.crc, bytes(one.head))
    assert head is not None
    assert head.runs == one.runs
    return list(rows_of(head, bytes(one.lines)))


@given(jobs=_JOBS)
def test_a_block_returns_its_jobs(jobs: list[Job]) -> None:
    """A payload would be stored under another id, in another stream, or altered."""
    rows = read(pack(1, jobs))
    assert all(is_surely_sound(row) for row in rows)
    assert [(row[0], row[1], row[3], row[2]) for row in rows] == [
        (one.seq, one.id.bytes, one.lines, one.payloads) for one in jobs
    ]


def test_each_damaged_byte_of_a_head_is_noticed() -> None:
    """Jobs would get the lines of others."""
    one = block()
    for index in range(len(one.head)):
        head = bytearray(one.head)
        head[index] ^= 4
        assert read_head(7, one.crc, bytes(head)) is None
    assert read_head(8, one.crc, bytes(one.head)) is None
    assert read_head(7, None, bytes(one.head)) is None
    assert read_head(7, one.crc, bytes(one.head[:-1])) is None
    assert read_head(7, one.crc, "text") is None
    assert read_head(0, 0, b"") is None


def test_a_head_of_another_length_is_damaged() -> None:
    """A checksum that matches by chance would end the daemon with a traceback."""
    longer = pack(7, [Job(1, id_of(1), b"1\n", 1)]).head + b"\0"
    from payloadd.journal.sqlite.checksum import crc32  # noqa: PLC0415 - of this test alone

    assert read_head(7, crc32(longer, 7), bytes(longer)) is None


def test_a_damaged_byte_of_the_lines_damages_one_job() -> None:
    """All jobs of a commit would be lost with one of them."""
    one = block()
    for index in range(len(one.lines)):
        lines = bytearray(one.lines)
        lines[index] ^= 1
        sound = [is_surely_sound(row) for row in read(one._replace(lines=lines))]
        assert sound.count(False) == 1
    for lines_, expected in ((one.lines[:-1], [True, True, False]), (bytearray(), [False] * 3)):
        rows = read(one._replace(lines=lines_))
        assert [is_surely_sound(row) for row in rows] == expected
        assert [row[0] for row in rows] == [1, 2, 1 << 48 | 9]


def test_lines_of_another_type_are_damaged_bytes() -> None:
    """One altered byte in the file would end the daemon, or hide what can be read."""
    one = block()
    head = read_head(one.number, one.crc, bytes(one.head))
    assert head is not None
    assert [row[3] for row in rows_of(head, "1\n2\nnine\n")] == [b"1\n", b"2\n", b"nine\n"]
    assert [row[3] for row in rows_of(head, 5)] == [b"", b"", b""]


def test_jobs_of_a_lost_head_are_damaged_rows() -> None:
    """They would be missing silently, although their numbers are known."""
    rows = list(lost_rows([(1, 2), (9, 9)]))
    assert [row[0] for row in rows] == [1, 2, 9]
    assert not any(is_surely_sound(row) for row in rows)
