"""Objects for tests of stores."""

from __future__ import annotations

from payloadd.model.formats.api import EncodedObject
from payloadd.model.formats.ndjson import GZIP, PLAIN
from payloadd.model.job import Members

MEMBERS = Members(1, "01890a5d-ac96-774b-bcce-b302099a8057", "01890a5d-ac96-774b-bcce-b302099a8057")
"""The identity of an object with one payload."""


def plain(*pieces: bytes) -> EncodedObject:
    """Return an object with these pieces of NDJSON, not compressed."""
    return EncodedObject(pieces, PLAIN.kind)


def gzipped(*pieces: bytes) -> EncodedObject:
    """Return an object whose pieces are compressed with gzip already."""
    return EncodedObject(pieces, GZIP.kind)


def bytes_of(body: EncodedObject) -> bytes:
    """Return the pieces of an object, joined."""
    return b"".join(body.pieces)
