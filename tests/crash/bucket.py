"""What a bucket has after a run of the daemon: payloads, objects that stay as they are, watermarks.

Watermarks are checked against all payloads that are known to be accepted: those that clients have
an answer for, and those in the journal.
"""

from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import pyarrow.parquet as pq
import zstandard

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

    from tests.support.s3 import S3Server

WATERMARKS: Final = "_watermarks/"


def is_watermark(key: str) -> bool:
    """Return whether the object at ``key`` is a watermark."""
    return key.startswith(WATERMARKS) or f"/{WATERMARKS}" in key


def read_bucket(objects: Mapping[str, bytes]) -> Counter[bytes]:
    """Return the number of each payload in these objects."""
    found: Counter[bytes] = Counter()
    for key, body in objects.items():
        if not is_watermark(key):
            found.update(_payloads(key, body))
    return found


def keys_that_share_payloads(objects: Mapping[str, bytes]) -> list[str]:
    """Return a line for each pair of objects that have a payload in common."""
    first: dict[bytes, str] = {}
    pairs = set()
    for key, body in objects.items():
        for payload in () if is_watermark(key) else _payloads(key, body):
            if first.setdefault(payload, key) != key:
                pairs.add(f"{first[payload]!r} and {key!r} share payloads")
    return sorted(pairs)


@dataclass
class BucketWatch:
    """What was found in a bucket after each run so far."""

    server: S3Server
    bucket: str
    objects: dict[str, bytes] = field(default_factory=dict)
    """All objects but watermarks, as they were found first."""
    raised: int = 0
    """How often a watermark was higher than after the run before."""
    _until: int = 0

    def look(self, accepted: Mapping[bytes, int]) -> list[str]:
        """Read the bucket; return a line for each watermark or object that is wrong. Blocks.

        ``accepted`` has payloads with their times of acceptance, in milliseconds.
        """
        # Watermarks first: the objects that they are about are there before.
        of_streams = self.server.objects(self.bucket, f"some/prefix/{WATERMARKS}")
        watermarks = [json.loads(body) for body in of_streams.values()]
        objects = self.server.objects(self.bucket)
        changed = [
            f"{key} has other bytes than before"
            for key, body in objects.items()
            if not is_watermark(key) and self.objects.setdefault(key, body) != body
        ]
        until = max((milliseconds(one["complete_until"]) for one in watermarks), default=0)
        back = [f"a watermark went back by {self._until - until} ms"] if until < self._until else []
        self.raised += until > self._until
        self._until = until
        return [*changed, *back, *wrong_watermarks(watermarks, accepted, read_bucket(objects))]


def wrong_watermarks(
    watermarks: Iterable[Mapping[str, Any]],
    accepted: Mapping[bytes, int],
    stored: Container[bytes],
) -> list[str]:
    """Return a line for each accepted payload that a watermark passes, or knows nothing of.

    A watermark passes payloads that were accepted before it and are not stored; one that is closed
    knows nothing of those that were accepted behind it.
    """
    found = []
    for one in watermarks:
        until = milliseconds(one["complete_until"])
        for payload, at in sorted(accepted.items()):
            text = payload.decode(errors="replace")
            if at < until and payload not in stored:
                found.append(f"accepted {until - at} ms before a watermark, not stored: {text}")
            if one["closed"] and at >= until:
                found.append(f"accepted {at - until} ms behind a closed watermark: {text}")
    return found


def milliseconds(text: str) -> int:
    """Return a time of RFC 3339 in milliseconds of Unix time."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def _payloads(key: str, body: bytes) -> list[bytes]:
    """Return the payloads of an object as they were accepted."""
    if key.endswith(".parquet"):
        rows = pq.read_table(io.BytesIO(body), columns=["_id", "_payload"])
        assert len({*rows["_id"].to_pylist()}) == len(rows), f"ids of {key} are there twice"
        return [text.encode() for text in rows["_payload"].to_pylist()]
    text = _decompressed(key, body)
    assert text.endswith(b"\n"), f"{key} is cut off"
    return text.removesuffix(b"\n").split(b"\n")


def _decompressed(key: str, body: bytes) -> bytes:
    if key.endswith(".gz"):
        return gzip.decompress(body)
    if key.endswith(".zst"):
        return zstandard.ZstdDecompressor().decompressobj().decompress(body)
    return body
