"""Segments: committed bytes are read back as they were, and other bytes leave nothing behind."""

from __future__ import annotations

import errno
import os
import sqlite3
import stat
import tempfile
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.errors import StartError
from payloadd.journal.sqlite import segments
from payloadd.journal.sqlite.segments import FOLDER, Segments, SegmentSpan, read

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_GROUPS: Final = st.lists(
    st.tuples(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=9), st.booleans()),
    max_size=8,
)
_pwritev = os.pwritev


def files(folder: Path) -> dict[int, bytes]:
    """Return the content of each segment."""
    return {int(path.stem): path.read_bytes() for path in (folder / FOLDER).iterdir()}


def places(segment: int, start: int, buffers: Sequence[bytes]) -> list[SegmentSpan]:
    """Return the places of buffers that are written one behind the other."""
    found = []
    for buffer in buffers:
        found.append(SegmentSpan(segment, start, len(buffer)))
        start += len(buffer)
    return found


def keep(here: Segments, buffers: Sequence[bytes], following: int) -> list[SegmentSpan]:
    """Write buffers as a successful commit does; returns their places."""
    found = places(*here.write(buffers, following), buffers)
    here.keep()
    return found


def at_most(count: int) -> Callable[[int, Sequence[bytes], int], int]:
    """Return a pwritev(2) that writes ``count`` bytes at most."""

    def short(file: int, buffers: Sequence[bytes], start: int) -> int:
        return _pwritev(file, [b"".join(buffers)[:count]], start)

    return short


@given(_GROUPS, st.integers(1, 50), st.integers(1, 5), st.integers(1, 60), st.integers(1, 99))
def test_kept_bytes_are_read_back_after_short_writes_and_failed_commits(
    groups: list[tuple[list[bytes], bool]], short: int, buffers: int, most_read: int, size: int
) -> None:
    """A short write, or a failed commit in between, would mix up the payloads of clients."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="payloadd-test-")))
        stack.enter_context(patch.object(os, "pwritev", at_most(short)))
        stack.enter_context(patch("payloadd.files.IOV_MAX", buffers))
        stack.enter_context(patch.object(segments, "SEGMENT_BYTES", size))
        here = stack.enter_context(closing(Segments(folder)))
        following, wanted, found = 1, list[bytes](), list[SegmentSpan]()
        for group, kept in groups:
            if not kept:
                here.write(group, following)
                here.cut()
                continue
            found += keep(here, group, following)
            wanted += group
            following += len(group)
        assert read(folder, found, most_read) == wanted
        assert all(one.segment <= two.segment for one, two in pairwise(found))
        left = files(folder) if wanted else {}
        assert sum(map(len, left.values())) == sum(map(len, wanted))
        assert here.names == sorted(set(here.names))


def test_a_full_segment_is_followed_by_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Disk space would be freed only when every job that was ever accepted is stored."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 4)
    with closing(Segments(tmp_path)) as here:
        for following in range(1, 6):
            keep(here, [b"%d\n" % following], following)
        assert files(tmp_path) == {1: b"1\n2\n", 3: b"3\n4\n", 5: b"5\n"}
        assert here.current == 5
        assert [here.within(1, 2), here.within(2, 4), here.within(9, 9)] == [[1], [1, 3], [5]]


@pytest.mark.parametrize("broken", ["pwritev", "fdatasync", "fsync", "open"])
def test_a_failed_write_leaves_the_kept_bytes_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """A full disk would stay full of refused payloads; or bytes of a failed sync be relied on."""

    def fail(*_arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with closing(Segments(tmp_path)) as here:
        first = keep(here, [b"first"], 1)
        if broken in {"fsync", "open"}:
            monkeypatch.setattr(segments, "SEGMENT_BYTES", 1)  # where a new one is begun
        with monkeypatch.context() as disk:
            disk.setattr(os, broken, fail)
            for _ in range(3):
                with pytest.raises(sqlite3.OperationalError, match="No space left") as caught:
                    here.write([b"lost"], 2)
                assert caught.value.sqlite_errorname == "ENOSPC"
                assert not here.in_doubt
        assert b"".join(files(tmp_path).values()) == b"first"
        second = keep(here, [b"second"], 2)
        assert second[0].segment == 2
        assert read(tmp_path, [*first, *second]) == [b"first", b"second"]


def test_a_write_of_zero_bytes_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that accepts nothing without an error would keep the journal busy for ever."""
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with closing(Segments(tmp_path)) as here, pytest.raises(sqlite3.OperationalError):
        here.write([b"1"], 1)


def test_a_new_run_begins_a_new_segment(tmp_path: Path) -> None:
    """Bytes that a crash left after the last commit would be sent as a payload."""
    with closing(Segments(tmp_path)) as here:
        kept = keep(here, [b"kept"], 1)
        here.write([b"never committed"], 2)
    with closing(Segments(tmp_path)) as here:
        assert here.current is None
        assert keep(here, [b"new"], 2) == [SegmentSpan(2, 0, 3)]
        assert read(tmp_path, kept) == [b"kept"]
    assert files(tmp_path)[1] == b"keptnever committed"


def test_the_error_names_the_missing_file_or_bytes(tmp_path: Path) -> None:
    """Bytes of another client would be sent, or an operator not know which file to restore."""
    with closing(Segments(tmp_path)) as here:
        keep(here, [b"1\n"], 1)
    with pytest.raises(sqlite3.OperationalError, match=r"0007.ndjson: No such file") as caught:
        read(tmp_path, [SegmentSpan(7, 0, 2)])
    assert caught.value.sqlite_errorname == "ENOENT"
    with pytest.raises(sqlite3.OperationalError, match=r"0001.ndjson: 1 bytes of 2 at 1"):
        read(tmp_path, [SegmentSpan(1, 1, 2)])


def test_segments_of_another_journal_are_refused(tmp_path: Path) -> None:
    """To move a damaged journal.db away would lose the payloads in its segments."""
    with closing(Segments(tmp_path)) as here:
        keep(here, [b"1\n"], 9)
        here.check(9)
        with pytest.raises(StartError, match=r"0009.ndjson belongs to another journal"):
            here.check(8)
    (tmp_path / FOLDER / "notes.txt").write_text("not ours")
    assert Segments(tmp_path).names == [9]


def test_segments_are_private_and_their_names_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other users could read payloads; or a power cut would remove the name of a synced file."""
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 2)
    synced: list[Path] = []

    def sync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "fdatasync", sync)
    before = os.umask(0)
    try:
        with closing(Segments(tmp_path)) as here:
            keep(here, [b"1\n"], 1)
            keep(here, [b"2\n"], 2)
            here.replaceable = 1
            keep(here, [b"3\n"], 3)
    finally:
        os.umask(before)
    folder = tmp_path / FOLDER
    two, three = sorted(folder.iterdir())
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, two)] == [0o700, 0o600]
    one = folder / f"{1:020}.ndjson"
    assert synced == [*(folder, tmp_path, one), *(folder, two), *(folder, three)]
