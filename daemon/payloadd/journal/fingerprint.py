"""Fingerprints of requests: they show that an Idempotency-Key was used for another request.

A fingerprint covers the stream and the payloads, not the bytes of the body: a client that repeats
a request may compress it anew or send a JSON array as NDJSON. It does not depend on how payloads
are divided into jobs, which settings change. It is no protection against a client that looks for
two requests with the same fingerprint: both would be the client's own.
"""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from payloadd.journal.sqlite.checksum import of_lines

if TYPE_CHECKING:
    from collections.abc import Iterable

    from payloadd.model.job import Part

_pack = Struct("<II").pack
_pack_stream = Struct("<q").pack


def fingerprint(parts: Iterable[Part], stream: int = 0) -> bytes:
    """Return 8 bytes: the CRC-32 of the stream's number and all lines, and the bytes of all lines.

    ``stream``: the number of the stream. The size is short because keys take a part of
    JOURNAL_MAX_BYTES.
    """
    crc = of_lines(_pack_stream(stream))
    size = 0
    for part in parts:
        crc = of_lines(part.lines, crc)
        size += len(part.lines)
    return _pack(crc, size & 0xFFFFFFFF)
