"""The header Prefer (RFC 7240), of which ``wait`` is understood, and the answers to it. No I/O.

A request with ``Prefer: wait=N`` is answered once its payloads are in the store, with 201, but
after N seconds at the latest, with 202. ``respond-async`` needs nothing: without ``wait`` the
answer never waits for the store. Everything else is ignored, as the RFC asks for.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from msgspec.json import encode

from payloadd.errors import RefusedError
from payloadd.escaping import escape_controls_in_json
from payloadd.ingress.http_grammar import TOKEN
from payloadd.pipeline.intake import StoredObjects

if TYPE_CHECKING:
    from payloadd.pipeline.intake import Receipt

_TOKEN: Final = TOKEN.decode("ascii")
_WORD: Final = rf'{_TOKEN}|"(?:[^"\\]|\\.)*+"'
_PARAMETER: Final = rf"{_TOKEN}(?:[ \t]*=[ \t]*(?:{_WORD}))?"
_PREFERENCE: Final = re.compile(
    rf"[ \t,]*({_TOKEN})(?:[ \t]*=[ \t]*({_WORD}))?"
    rf"(?:[ \t]*;[ \t]*(?:{_PARAMETER})?)*+[ \t]*(?:,|$)"
)
"""One preference of the list (RFC 7240, section 2)."""
_LONGEST: Final = 1024
"""Characters of a header that is read; a longer one is ignored."""
_MOST_SECONDS: Final = 2**31
"""A larger number of seconds counts as this one (RFC 9111, section 1.2.2)."""


@lru_cache(maxsize=64)
def seconds_to_wait(prefer: str | None) -> int | None:
    """Return N of ``wait=N`` in a header Prefer, whose lines are joined by commas.

    Returns None without the preference, and if it is malformed. The first ``wait`` counts, as
    section 2 says for each preference. Behind a part that is no preference nothing is read.
    """
    if prefer is None or len(prefer) > _LONGEST:
        return None
    position = 0
    while position < len(prefer):
        found = _PREFERENCE.match(prefer, position)
        if found is None:
            return None
        if found[1].lower() == "wait":
            seconds = (found[2] or "").strip('"')
            if not (seconds.isascii() and seconds.isdigit()):
                return None
            return min(int(seconds[:11]), _MOST_SECONDS)
        position = found.end()
    return None


WaitOutcome = StoredObjects | RefusedError | None
"""The objects of a request that is stored, None if it is not stored yet, the error if it was not
promised."""


class Accepted(NamedTuple):
    """The answer to an accepted request."""

    status: int
    body: bytes
    waited: int | None = None
    """Seconds of the preference that was applied, for the header Preference-Applied."""


def receipt_document(receipt: Receipt) -> bytes:
    """Return the body of a 202."""
    # Equal to str(receipt.id), which was measurably slower.
    digits = b"%032x" % receipt.id.int
    return b'{"id":"%b-%b-%b-%b-%b","accepted":%d}' % (
        digits[:8],
        digits[8:12],
        digits[12:16],
        digits[16:20],
        digits[20:],
        receipt.payloads,
    )


def accepted(receipt: Receipt, objects: StoredObjects | None, wait: int | None = None) -> Accepted:
    """Return the 201 with the keys of the objects, or the 202 if they are not known.

    ``wait`` is the number of seconds that was granted; None: the preference was not applied.
    ``more_objects`` is the number of keys that are left out.
    """
    document = receipt_document(receipt)
    if objects is None:
        return Accepted(202, document)
    keys = objects.keys
    text = _one_key(keys[0]) if len(keys) == 1 else _key_list(keys)
    more = b',"more_objects":%d' % objects.more if objects.more else b""
    return Accepted(201, b'%b,"objects":%b%b}' % (document[:-1], text, more), wait)


def _key_list(keys: list[str]) -> bytes:
    return escape_controls_in_json(encode(keys))


@lru_cache(maxsize=64)
def _one_key(key: str) -> bytes:
    """Return the list of one key: thousands of requests may be in one object."""
    return _key_list([key])
