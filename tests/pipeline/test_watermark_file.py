"""What a process has promised with its watermarks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from payloadd.errors import StartError
from payloadd.pipeline.watermark_file import FILE, WatermarkFile


def test_a_promise_outlives_the_process(tmp_path: Path) -> None:
    """After a crash payloads could get times that a watermark in the store has passed."""
    file = WatermarkFile(tmp_path / "state")
    assert (file.promise.floor, file.promise.closed) == (0, False)
    file.write({"a": 5, "b": 7}, closed=False)
    file.write({"a": 5, "b": 9}, closed=True)
    again = WatermarkFile(tmp_path / "state").promise
    assert again == file.promise
    assert (again.floor, again.closed, again.until) == (9, True, {"a": 5, "b": 9})
    assert WatermarkFile(tmp_path / "other").promise.process != again.process
    assert [path.name for path in (tmp_path / "state").iterdir()] == [FILE]


@pytest.mark.parametrize("content", [b"", b"{}", b'{"process": 1}'])
def test_a_damaged_promise_refuses_the_start(tmp_path: Path, content: bytes) -> None:
    """The process would forget what it has promised."""
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(StartError, match=r"cannot read .*watermarks.json"):
        WatermarkFile(tmp_path)


def test_a_promise_is_synced_before_it_replaces_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut the file would be empty, or the last promise be back."""
    synced: list[tuple[str, bool]] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        synced.append((path, (tmp_path / FILE).exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    WatermarkFile(tmp_path).write({"a": 5}, closed=False)
    temporary = tmp_path / f".{FILE}.tmp"
    assert synced[-2:] == [(str(temporary), False), (str(tmp_path), True)]
