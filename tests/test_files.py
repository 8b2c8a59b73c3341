"""Vectored writes: all buffers are written in order, however short each system call stops."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Final
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd import files
from payloadd.files import skip, write_at

if TYPE_CHECKING:
    from collections.abc import Sequence

_BUFFERS: Final = st.lists(st.binary(max_size=9), max_size=9)
_pwritev = os.pwritev


@given(_BUFFERS, st.integers(0, 90))
def test_skip_returns_the_buffers_without_their_first_bytes(
    buffers: list[bytes], count: int
) -> None:
    """Bytes would be sent twice, or left out, after a write that stopped short."""
    assert b"".join(skip(buffers, count)) == b"".join(buffers)[count:]


@given(_BUFFERS, st.integers(0, 20), st.integers(1, 9), st.integers(1, 3))
def test_all_bytes_are_written_after_short_writes(
    buffers: list[bytes], start: int, most: int, most_buffers: int
) -> None:
    """Payloads would be cut off where the system writes a part of them."""

    def short(file: int, some: Sequence[bytes], position: int) -> int:
        assert len(some) <= most_buffers
        return _pwritev(file, [b"".join(some)[:most]], position)

    wanted = b"".join(buffers)
    with (
        tempfile.TemporaryFile() as file,
        patch.object(os, "pwritev", short),
        patch.object(files, "IOV_MAX", most_buffers),
    ):
        # Empty buffers alone are never written: a row without bytes has no segment.
        full = [one for one in buffers if one]
        assert write_at(file.fileno(), full, start) == len(wanted)
        assert os.pread(file.fileno(), 1000, start) == wanted


def test_a_write_of_zero_bytes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that accepts nothing without an error would keep a process busy for ever."""
    monkeypatch.setattr(os, "pwritev", lambda *_: 0)
    with tempfile.TemporaryFile() as file, pytest.raises(OSError, match="nothing was written"):
        write_at(file.fileno(), [b"1"], 0)
