"""The file of a segment: bytes of a former segment are never taken for those of the new one."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.journal.sqlite.segment_file import SegmentFile, cut_old_bytes

_LINES = st.lists(st.binary(min_size=1, max_size=3000).map(lambda one: one.replace(b"\0", b".")))
_OLD = b'{"old":1}\n'


@given(st.integers(0, 2000), st.lists(st.tuples(_LINES.filter(bool), st.booleans()), max_size=6))
def test_the_new_bytes_are_the_file_up_to_its_first_nul(
    old_lines: int, writes: list[tuple[list[bytes], bool]]
) -> None:
    """Payloads that are stored long ago would be taken for lost ones, and sent again."""
    with tempfile.TemporaryDirectory(prefix="payloadd-test-") as name:
        old, path = Path(name, "old"), Path(name, "new")
        old.write_bytes(_OLD * old_lines)
        file = SegmentFile.take_over(old, path, len(_OLD) * 2000)
        assert file is not None
        kept = b""
        for buffers, is_kept in writes:
            assert file.write(buffers, len(kept)) == len(b"".join(buffers))
            written = kept + b"".join(buffers)
            content = path.read_bytes()
            assert content[: len(written)] == written
            assert content[len(written) :][:1] in {b"", b"\0"}
            if is_kept:
                kept = written
            else:
                file.cut(len(kept))
                assert path.read_bytes() == kept
        file.close()
        cut_old_bytes(path)
        assert path.read_bytes() == kept
        assert not old.exists()


def test_a_file_that_is_large_or_has_two_names_is_left_alone(tmp_path: Path) -> None:
    """A copy by hard links would change; or a rare large payload keep its space for ever."""
    old, path = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"12345")
    assert SegmentFile.take_over(old, path, 4) is None
    os.link(old, tmp_path / "copy")
    assert SegmentFile.take_over(old, path, 5) is None
    (tmp_path / "copy").unlink()
    assert not path.exists()
    assert old.read_bytes() == b"12345"
    (tmp_path / "link").symlink_to(old)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        SegmentFile.take_over(tmp_path / "link", path, 5)
    file = SegmentFile.take_over(old, path, 5)
    assert file is not None
    file.close()


def test_a_write_over_old_bytes_reads_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel would have to read the end of a page from the disk in each commit."""
    ends: list[int] = []

    def write(file: int, buffers: list[bytes], start: int) -> int:
        ends.append(start + sum(map(len, buffers)))
        return _pwritev(file, buffers, start)

    monkeypatch.setattr(os, "pwritev", write)
    old = tmp_path / "old"
    old.write_bytes(bytes(20_000))
    file = SegmentFile.take_over(old, tmp_path / "new", 20_000)
    assert file is not None
    file.write([b"x" * 5000], 0)
    file.write([b"x" * 3192], 5000)
    file.write([b"x" * 15_000], 8192)
    file.close()
    assert ends == [8192, 12_288, 23_192]


_pwritev = os.pwritev
