"""The records of ``journal.high``: their format, and how a start reads them."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

SUFFIX: Final = ".high"
"""Suffix of the file's name in STATE_DIR, ``journal.high``."""
OPEN_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW

_MAGIC: Final = b"payldhw2"
_BODY: Final = struct.Struct("<8sQ16s16sqqqqIqq")
"""Magic, number of the record, boot id, identity of the journal, next seq, payloads accepted, held,
missing, flags, clock of the keys, time since boot."""
_FORMER_MAGIC: Final = b"payldhw1"
_FORMER_BODY: Final = struct.Struct("<8sQ16s16sqqqqI")
"""The same without the two times."""
_CHECKSUM: Final = struct.Struct("<I")
SECTOR_BYTES: Final = 512
FLAG_CLEAN: Final = 1
FLAG_AT_LEAST: Final = 2
FLAG_FOREIGN: Final = 4


@dataclass(frozen=True, slots=True)
class HighWaterRecord:
    """One record of ``journal.high``."""

    number: int
    boot: bytes
    """Boot id of the machine."""
    journal: bytes
    """Identity of the journal."""
    next: int
    """``seq`` of the next job."""
    accepted: int
    """Payloads that were ever accepted."""
    held: int
    """Payloads in the journal: waiting or in dead letters."""
    missing: int
    """Payloads that an earlier start found missing and no operator has acknowledged yet."""
    flags: int
    time: int = 0
    """Time of the clock of the Idempotency-Keys, in ms; 0 in records that do not have it."""
    uptime: int = 0
    """Milliseconds since the machine was booted."""

    @property
    def clean(self) -> bool:
        """Whether the daemon was stopped in order after this record."""
        return bool(self.flags & FLAG_CLEAN)

    @property
    def foreign(self) -> bool:
        """Whether an earlier start found the record of another journal."""
        return bool(self.flags & FLAG_FOREIGN)


def pack(*values: int | bytes) -> bytes:
    """Return the bytes of a record with these values, in the order of ``HighWaterRecord``."""
    body = _BODY.pack(_MAGIC, *values)
    return body + _CHECKSUM.pack(zlib.crc32(body))


def read(journal: Path) -> HighWaterRecord | None:
    """Return the last valid record for ``journal``, None without one. Raises OSError."""
    try:
        file = os.open(journal.with_suffix(SUFFIX), os.O_RDONLY | OPEN_FLAGS)
    except FileNotFoundError:
        return None
    try:
        content = os.pread(file, 2 * SECTOR_BYTES, 0)
    finally:
        os.close(file)
    records = [_parse(content[slot * SECTOR_BYTES :]) for slot in (0, 1)]
    valid = (record for record in records if record is not None)
    return max(valid, key=lambda record: record.number, default=None)


def _parse(record: bytes) -> HighWaterRecord | None:
    layout = _FORMER_BODY if record.startswith(_FORMER_MAGIC) else _BODY
    size = layout.size
    if len(record) < size + _CHECKSUM.size:
        return None
    body = record[:size]
    magic, *values = layout.unpack(body)
    known = magic in {_MAGIC, _FORMER_MAGIC}
    if not known or _CHECKSUM.unpack_from(record, size) != (zlib.crc32(body),):
        return None
    return HighWaterRecord(*values)
