"""Reading of plain and compressed files, of pipes and of damaged files."""

from __future__ import annotations

import gzip
import os
from typing import TYPE_CHECKING

import pytest
import zstandard

from payloadd.cli.sending.files import READ_ERRORS, InputFile, total_size

if TYPE_CHECKING:
    from pathlib import Path

TEXT = b"".join(b'{"number": %d}\n' % number for number in range(5000))


def _skippable() -> bytes:
    return b"\x5a\x2a\x4d\x18\x03\x00\x00\x00abc"


COMPRESSED = {
    "plain": TEXT,
    "gzip": gzip.compress(TEXT),
    "gzip members": gzip.compress(TEXT[:1000]) + gzip.compress(TEXT[1000:]),
    "zstd": zstandard.compress(TEXT),
    "zstd frames": zstandard.compress(TEXT[:1000])
    + _skippable()
    + zstandard.compress(b"")
    + zstandard.compress(TEXT[1000:]),
    "zstd after a skippable frame": _skippable() + zstandard.compress(TEXT),
}


def _read(name: Path) -> bytes:
    with InputFile.named(str(name)).open() as file:
        blocks = list(iter(lambda: file.read(777), b""))
        assert file.position == name.stat().st_size
    assert max(map(len, blocks), default=0) <= 777
    return b"".join(blocks)


@pytest.mark.parametrize("kind", COMPRESSED)
def test_content_is_read_whatever_the_compression(kind: str, tmp_path: Path) -> None:
    """The first bytes tell the compression; members and frames are joined."""
    path = tmp_path / "file"
    path.write_bytes(COMPRESSED[kind])
    assert _read(path) == TEXT


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
@pytest.mark.parametrize("keep", [10, -1])
def test_a_compressed_file_that_is_cut_off_is_an_error(
    kind: str, keep: int, tmp_path: Path
) -> None:
    """Its end must not be taken for the end of the content."""
    path = tmp_path / "file"
    path.write_bytes(COMPRESSED[kind][:keep])
    with pytest.raises(READ_ERRORS):
        _read(path)


def test_damaged_zstd_is_an_error(tmp_path: Path) -> None:
    """Bytes behind the last frame are not ignored."""
    path = tmp_path / "file"
    path.write_bytes(zstandard.compress(TEXT) + b"garbage")
    with pytest.raises(READ_ERRORS):
        _read(path)


def test_a_pipe_has_no_size(tmp_path: Path) -> None:
    """The progress has no percentage then."""
    os.mkfifo(tmp_path / "pipe")
    descriptor = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        pipe = InputFile.named(str(tmp_path / "pipe"))
    finally:
        os.close(descriptor)
    (tmp_path / "file").write_bytes(b"12345")
    file = InputFile.named(str(tmp_path / "file"))
    assert (pipe.size, file.size, total_size([file]), total_size([file, pipe])) == (
        None,
        5,
        5,
        None,
    )


def test_keys_use_the_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run from another folder has the same keys."""
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert InputFile.named("file").identity == str(tmp_path / "file")
    assert InputFile.named("-").identity == "-"


def test_folders_and_missing_files_are_errors(tmp_path: Path) -> None:
    """They are reported before anything is sent."""
    for name in (tmp_path, tmp_path / "missing"):
        with pytest.raises(OSError, match=str(name)):
            InputFile.named(str(name))
