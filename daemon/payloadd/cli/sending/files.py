"""Open files of payloads, plain or compressed with gzip or zstd, and standard input."""

from __future__ import annotations

import errno
import io
import os
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, Self

from zstandard import ZstdDecompressor, ZstdError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STANDARD_INPUT: Final = "-"
READ_ERRORS: Final = (OSError, EOFError, ZstdError, zlib.error)
"""What reading raises for a file that cannot be read, or whose compression is damaged."""
_GZIP: Final = b"\x1f\x8b"  # RFC 1952, section 2.3.1
_SKIPPABLE: Final = [bytes([0x50 + number]) + b"\x2a\x4d\x18" for number in range(16)]
_ZSTD: Final = (b"\x28\xb5\x2f\xfd", *_SKIPPABLE)
"""First bytes of a frame, and of a frame that is skipped (RFC 8878, sections 3.1.1 and 3.1.2)."""
_LONGEST_MAGIC: Final = 4
_COMPRESSED_BLOCK: Final = 2**13
"""Bytes that are decompressed at a time: they may become many times as many."""


class ByteSource(Protocol):
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
        # Not opened here: a pipe that is opened and closed again ends its writer.
        path = Path(name)
        status = path.stat()
        for wrong, number in (
            (stat.S_ISDIR(status.st_mode), errno.EISDIR),
            (not os.access(path, os.R_OK), errno.EACCES),
        ):
            if wrong:
                raise OSError(number, os.strerror(number), name)
        size = status.st_size if stat.S_ISREG(status.st_mode) else None
        return cls(name, str(path.resolve()), size)

    def open(self) -> OpenedFile:
        """Return the file, opened for reading."""
        # Not sys.stdin: a thread that is still reading would hold its lock when the process ends.
        if self.name == STANDARD_INPUT:
            return OpenedFile(io.FileIO(0, closefd=False))
        return OpenedFile(io.FileIO(self.name))


class OpenedFile:
    """The plain content of an open file; a context manager.

    It has no lock, as Python's buffered files have: a thread may wait for a pipe for ever, and the
    end of the process must not wait for this thread.
    """

    def __init__(self, raw: io.FileIO) -> None:
        """Begin at the start of ``raw``; its first bytes tell the compression.

        Raises OSError.
        """
        self._raw = raw
        self._start = b""
        self.position = 0
        """Bytes of the file on the disk that were read so far."""
        start = self._read_raw(_LONGEST_MAGIC)
        while block := self._read_raw(_LONGEST_MAGIC - len(start)):
            start += block
        self._start = start
        self._plain: Callable[[int], bytes] = self._read_raw
        if start.startswith(_GZIP):
            self._plain = _Frames(self._read_raw, _gzip_member, "gzip").read
        elif start.startswith(_ZSTD):
            self._plain = _Frames(self._read_raw, _zstd_frame, "zstd").read

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._raw.close()

    def read(self, size: int, /) -> bytes:
        """Return at most ``size`` bytes; b"" at the end. Raises one of ``READ_ERRORS``."""
        return self._plain(size)

    def _read_raw(self, size: int) -> bytes:
        if self._start:
            found, self._start = self._start[:size], self._start[size:]
            return found
        found = self._raw.read(size)
        self.position += len(found)
        return found


class _Frame(Protocol):
    """A decompressor of one gzip member or zstd frame."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def _gzip_member() -> _Frame:
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


def _zstd_frame() -> _Frame:
    return ZstdDecompressor().decompressobj()


class _Frames:
    """The content of all gzip members or zstd frames of a file, one behind the other."""

    def __init__(
        self, read: Callable[[int], bytes], new_frame: Callable[[], _Frame], kind: str
    ) -> None:
        self._read = read
        self._new_frame = new_frame
        self._kind = kind
        self._frame = new_frame()
        self._started = False
        """Whether the frame has bytes, so that the file must not end here."""
        self._compressed = b""
        self._plain = b""

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes; b"" at the end.

        Raises ZstdError or zlib.error for damaged content, EOFError where the file ends within a
        frame.
        """
        while not self._plain:
            block = self._compressed or self._read(_COMPRESSED_BLOCK)
            if not block:
                if self._started:
                    raise EOFError(f"the file ends within its {self._kind} data")
                return b""
            self._plain = self._frame.decompress(block)
            self._started = not self._frame.eof
            self._compressed = b""
            if self._frame.eof:
                self._compressed = self._frame.unused_data
                self._frame = self._new_frame()
        found, self._plain = self._plain[:size], self._plain[size:]
        return found


def total_size(files: Sequence[InputFile]) -> int | None:
    """Return the bytes of all files on the disk; None if a size is not known."""
    sizes = [file.size for file in files if file.size is not None]
    return sum(sizes) if len(sizes) == len(files) else None
