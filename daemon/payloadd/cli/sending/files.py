"""Open files of payloads, plain or compressed with gzip or zstd, and standard input."""

from __future__ import annotations

import gzip
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self

from zstandard import ZstdDecompressor, ZstdError

if TYPE_CHECKING:
    from collections.abc import Sequence

STANDARD_INPUT: Final = "-"
READ_ERRORS: Final = (OSError, EOFError, ZstdError)
"""What reading raises for a file that cannot be read, or whose compression is damaged."""
_GZIP: Final = b"\x1f\x8b"  # RFC 1952, section 2.3.1
_SKIPPABLE: Final = [bytes([0x50 + number]) + b"\x2a\x4d\x18" for number in range(16)]
_ZSTD: Final = (b"\x28\xb5\x2f\xfd", *_SKIPPABLE)
"""First bytes of a frame, and of a frame that is skipped (RFC 8878, sections 3.1.1 and 3.1.2)."""
_BLOCK: Final = 2**20
_ZSTD_BLOCK: Final = 2**13
"""Bytes that are decompressed at a time: they may become many times as many."""


class Readable(Protocol):
    """A source of bytes."""

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes; b"" at the end."""
        ...


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file named on the command line."""

    name: str
    """The name as it was given."""
    identity: str
    """The name that Idempotency-Keys are made of: the absolute path, or ``-``."""
    size: int | None
    """Bytes on the disk; None for a pipe."""

    @classmethod
    def named(cls, name: str) -> InputFile:
        """Return the file called ``name``. Raises OSError if it cannot be read or is a folder."""
        if name == STANDARD_INPUT:
            return cls(name, name, None)
        path = Path(name)
        with path.open("rb") as file:  # a folder raises here
            size = os.fstat(file.fileno()).st_size if path.is_file() else None
        return cls(name, str(path.resolve()), size)

    def open(self) -> OpenedFile:
        """Return the file, opened for reading."""
        # Not sys.stdin: a thread that is still reading would hold its lock when the process ends.
        if self.name == STANDARD_INPUT:
            return OpenedFile(io.FileIO(0, closefd=False))
        return OpenedFile(io.FileIO(self.name))


class OpenedFile:
    """The plain content of an open file; a context manager."""

    def __init__(self, raw: io.FileIO) -> None:
        """Begin at the start of ``raw``; its first bytes tell the compression.

        Raises OSError.
        """
        self._raw = _Counted(raw)
        self._buffered = io.BufferedReader(self._raw, _BLOCK)
        start = self._buffered.peek(4)[:4]
        self._plain: Readable = self._buffered
        if start.startswith(_GZIP):
            self._plain = gzip.GzipFile(fileobj=self._buffered)
        elif start.startswith(_ZSTD):
            self._plain = _ZstdFile(self._buffered)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._buffered.close()

    @property
    def position(self) -> int:
        """Bytes of the file on the disk that were read so far."""
        return self._raw.count

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes; b"" at the end. Raises one of ``READ_ERRORS``."""
        return self._plain.read(size)


class _ZstdFile:
    """The content of all frames of a zstd file, one behind the other."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._frame = ZstdDecompressor().decompressobj()
        self._started = False
        """Whether the frame has bytes, so that the file must not end here."""
        self._compressed = b""
        self._plain = b""

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes; b"" at the end.

        Raises ZstdError for damaged content, EOFError where the file ends within a frame.
        """
        while not self._plain:
            block = self._compressed or self._file.read(_ZSTD_BLOCK)
            if not block:
                if self._started:
                    raise EOFError("the file ends within a zstd frame")
                return b""
            self._plain = self._frame.decompress(block)
            self._started = not self._frame.eof
            self._compressed = b""
            if self._frame.eof:
                self._compressed = self._frame.unused_data
                self._frame = ZstdDecompressor().decompressobj()
        found, self._plain = self._plain[:size], self._plain[size:]
        return found


class _Counted(io.RawIOBase):
    """A file that counts the bytes read from it."""

    def __init__(self, raw: io.FileIO) -> None:
        self._file = raw
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int | None:  # type: ignore[override]
        count = self._file.readinto(buffer)
        self.count += count or 0
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def total_size(files: Sequence[InputFile]) -> int | None:
    """Return the bytes of all files on the disk; None if a size is not known."""
    sizes = [file.size for file in files if file.size is not None]
    return sum(sizes) if len(sizes) == len(files) else None
