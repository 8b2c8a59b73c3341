"""Hooks of schemathesis: what OpenAPI cannot say about a request, and one more check.

Schemathesis imports this module in its own process (see ``tests/system/test_openapi.py``).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from typing import TYPE_CHECKING, Any, Final

import schemathesis
import zstandard
from hypothesis import strategies as st
from schemathesis.core import NotSet

from payloadd.ingress.body import NDJSON_TYPES
from payloadd.ingress.submission import KEY_CHARACTERS, LONGEST_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping, Sequence

_KEY: Final = "Idempotency-Key"
_CODING: Final = "Content-Encoding"
_DIGITS: Final = 32
_COMPRESS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "zstd": zstandard.compress,
    "deflate": zlib.compress,
}
_IDS: Final[dict[str, str]] = {}
"""The id that a request with a key was answered with."""

_VALUES: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


def _lines_of(values: Sequence[object]) -> bytes:
    return "".join(json.dumps(value) + "\n" for value in values).encode()


for _media_type in NDJSON_TYPES:
    schemathesis.openapi.media_type(_media_type, st.lists(_VALUES, max_size=5).map(_lines_of))


def _as_sent(body: object) -> bytes:
    """Return a body before its compression: one value of JSON is a line of NDJSON, too."""
    return body if isinstance(body, bytes) else json.dumps(body).encode()


@schemathesis.serializer(*NDJSON_TYPES)
def serialize_lines(_context: schemathesis.SerializationContext, body: object) -> bytes:
    """Return a body of NDJSON, which schemathesis does not know."""
    return _as_sent(body)


@schemathesis.hook
def before_load_schema(_context: schemathesis.HookContext, raw_schema: dict[str, Any]) -> None:
    """Make bytes of the examples of NDJSON: schemathesis has nothing but bytes of these types."""
    for item in raw_schema["paths"].values():
        for method in item.keys() & {"post", "put"}:
            content = item[method]["requestBody"]["content"]
            for media_type in content.keys() & set(NDJSON_TYPES):
                content[media_type]["example"] = content[media_type]["example"].encode()


@schemathesis.hook
def before_call(
    _context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]
) -> None:
    """Send what OpenAPI cannot ask for: keys used once, and bodies as their headers say."""
    if case.method not in {"POST", "PUT"}:
        return
    if isinstance(case.body, bytes) and case.media_type not in NDJSON_TYPES:
        # A link has the body of the request before it, and not its type.
        case.media_type = NDJSON_TYPES[0]
    headers: MutableMapping[str, Any] = case.headers or {}
    key = headers.get(_KEY)
    if isinstance(key, str) and re.fullmatch(f"{KEY_CHARACTERS}{{1,{LONGEST_KEY}}}", key):
        request = repr((case.path, case.media_type, case.body)).encode()
        digest = hashlib.sha256(request).hexdigest()[:_DIGITS]
        if not key.endswith(digest):
            headers[_KEY] = key[: LONGEST_KEY - _DIGITS] + digest
    if _names_no_coding(headers.get(_CODING)):
        del headers[_CODING]
    compress = _COMPRESS.get(headers.get(_CODING, ""))
    if compress is not None and not isinstance(case.body, NotSet):
        kwargs["data"] = compress(_as_sent(case.body))


def _names_no_coding(value: object) -> bool:
    """Return whether a header is an empty list; its elements may be empty (RFC 9110, 5.6.1.2)."""
    return isinstance(value, str) and not value.strip(" \t,")


@schemathesis.check
def a_repetition_gets_the_first_answer(
    _context: schemathesis.CheckContext,
    response: schemathesis.Response,
    case: schemathesis.Case[Any],
) -> None:
    """Compare the id of an answer with that of the first request with the same key.

    An empty collection leaves no key.
    """
    headers: MutableMapping[str, Any] = case.headers or {}
    key = headers.get(_KEY)
    if key is not None and response.status_code == 202 and response.json()["accepted"]:
        first = _IDS.setdefault(key, response.json()["id"])
        assert response.json()["id"] == first
