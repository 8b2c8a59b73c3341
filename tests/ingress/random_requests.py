"""Random requests with tokens and streams, most of them nearly valid."""

from __future__ import annotations

import gzip
import zlib
from base64 import b64encode
from typing import TYPE_CHECKING, Final

import zstandard

from tests.ingress.random_bodies import make_collection, make_lines, make_value
from tests.ingress.rig import COLLECTION, post
from tests.support.fuzz import mutate, pieces_of

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

STREAMS: Final = "clicks,errors"
TOKENS: Final = {
    b"all-streams": "web",
    b"clicks-only": "ci:clicks",
    b"default-only": "main:default",
    b"no-stream": "old:gone",
}
_PATHS: Final = (
    *(b"/v1/payloads", b"/v1/payloads/clicks", b"/v1/payload/errors", b"/v1/payload"),
    *(b"/v1/payloads/default", b"/v1/payloads/errors/", b"/v1/payload/clicks/", b"/v1/payloads/"),
)
_ODD_PATHS: Final = (
    *(b"/v1/payloads/gone", b"/v1/payloads/CLICKS", b"/v1/payloads/clicks/x", b"/v1/payloads//"),
    *(b"/v1/payloads/clic%6bs", b"/v1/payloads%2Fclicks", b"/v1/payload%73/clicks", b"/healthz"),
    *(
        b"/v1/payloads/%00%ff",
        b"/v1/payloads/clicks?x=1",
        b"//v1/payloads",
        b"/v1/payloads/clicks\\",
    ),
    *(b"http://x/v1/payloads/clicks", b"*", b"/v1/payloads/" + b"s" * 300, b"/v1/payloads/."),
)
_METHODS: Final = (
    b"POST",
    b"POST",
    b"POST",
    b"POST",
    b"PUT",
    b"OPTIONS",
    b"PATCH",
    b"GET",
    b"post",
)
_VERSIONS: Final = (*[b"HTTP/1.1"] * 20, b"HTTP/1.0", b"http/1.1", b"HTTP/1.1 ")
_KINDS: Final = (
    *(b"application/json", b"application/x-ndjson", b"application/json; charset=utf-8"),
    *(
        b"text/plain",
        b"application/cloudevents+json",
        b"text/html",
        b"",
        b"application/json; x=\xff",
    ),
)
_KEYS: Final = (b"k", b"k2", b"", b"a b", b"k" * 256, b"\xe9", b"\x01")
_MORE: Final = (
    *(b"Origin: https://x.example", b"Origin: null", b"X-Other: y", b"Connection: close"),
    *(b"Connection: keep-alive", b"User-Agent: x/1 \xff", b"Accept: */*", b"Cookie: " + b"c" * 900),
    *(b"Prefer: wait=0", b"Expect: 100-continue", b"TE: trailers", b"Host: y", b"X-Empty:"),
    *(
        b"Proxy-Authorization: Bearer all-streams",
        b"Authorization:",
        b"X_a: b",
        b"Content-Length: 0",
    ),
)
_ODD_BYTES: Final = (
    *(b"\r", b"\n", b"\r\n", b"\0", b"\t", b" ", b":", b"/", b"%", b"%2f", b"?", b"#", b"\x7f"),
    *(b"\xff", b"clicks", b"errors", b"Transfer-Encoding: chunked\r\n", b"0", b"-", b"HTTP/1.1"),
    *(b"Authorization: Bearer clicks-only\r\n", b"\r\n\r\n", b" \r\n", b"POST /v1/payloads"),
)
_ODD_CHUNKS: Final = (
    *(
        b"\r",
        b"\n",
        b"\r\n",
        b"\0",
        b" ",
        b";",
        b"0",
        b"1",
        b"f",
        b"x",
        b"-",
        b"0\r\n\r\n",
        b"\r\n\r\n",
    ),
    *(b"Content-Length: 3\r\n", b"X : y\r\n", b" x\r\n", b"\xff", b'"', b"=", b"ffffffffffffffff1"),
)
_MOST_BYTES: Final = 50_000


def make_case(chance: random.Random) -> list[bytes]:
    """Return the requests of a connection; each is sent after the answer to the last."""
    return [make_request(chance) for _ in range(chance.choice((1, 1, 2, 3)))]


def make_pipelined_case(chance: random.Random) -> list[bytes]:
    """Return requests that can be sent without waiting for an answer.

    Many are valid: nearly every other one ends its connection.
    """
    return [
        make_request(chance, odd=False) if chance.random() < 0.3 else make_valid_request(chance)
        for _ in range(chance.randrange(2, 9))
    ]


def make_request(chance: random.Random, *, odd: bool = True) -> bytes:
    """Return a request that is mostly valid; its framing is valid unless ``odd``."""
    body, more = make_body(chance)
    if chance.random() < 0.25:
        head = make_head(chance, 0, *more)
        head = head.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked", 1)
        return head + make_chunks(body, chance, odd=odd)
    head = make_head(chance, len(body), *more)
    if odd and chance.random() < 0.1:
        head = mutate(head, chance, _ODD_BYTES)
    return head + body


def make_valid_request(chance: random.Random) -> bytes:
    """Return a request that is accepted."""
    path = chance.choice(("/v1/payloads", "/v1/payloads/clicks", "/v1/payloads/errors"))
    body = chance.choice((COLLECTION, b'{"payloads":[]}', b'{"payloads":["%s"]}' % (b"x" * 9000)))
    headers = ("Authorization: Bearer all-streams", "Content-Type: application/json")
    return post(body, *headers, path=path)


def make_head(chance: random.Random, size: int, *more: bytes) -> bytes:
    """Return a head whose parts are mostly valid, for a body of ``size`` bytes."""
    path = chance.choice(_PATHS if chance.random() < 0.85 else _ODD_PATHS)
    method = chance.choice(_METHODS if chance.random() < 0.3 else _METHODS[:5])
    lines = [b"Host: x", b"Content-Length: %d" % size, *more]
    if chance.random() < 0.95:
        kind = chance.choice(_KINDS if chance.random() < 0.2 else _KINDS[:2])
        lines.append(b"Content-Type: " + kind)
    if chance.random() < 0.95:
        token = chance.choice((*TOKENS, b"all-streams", b"all-streams", b"clicks-only"))
        lines.append(_authorization(token, chance))
    if chance.random() < 0.3:
        lines.append(
            b"Idempotency-Key: " + chance.choice(_KEYS if chance.random() < 0.2 else _KEYS[:2])
        )
    if chance.random() < 0.3:
        lines += chance.choices(_MORE, k=chance.choice((1, 1, 2)))
    chance.shuffle(lines)
    version = chance.choice(_VERSIONS)
    if version == b"HTTP/1.0":  # Hypercorn never keeps such a connection
        lines = [line for line in lines if line != b"Connection: keep-alive"]
    first = b"%s %s %s" % (method, path, version)
    return b"\r\n".join((first, *lines, b"", b""))


def _authorization(token: bytes, chance: random.Random) -> bytes:
    match chance.randrange(12):
        case 0:
            return b"authorization: BEARER  " + token
        case 1:
            return b"Authorization: Basic " + b64encode(b"user:" + token)
        case 2:
            return b"AUTHORIZATION:Bearer " + token + b"x"
        case 3:
            return b"Authorization: Basic !"
        case _:
            return b"Authorization: Bearer " + token


def make_body(chance: random.Random) -> tuple[bytes, list[bytes]]:
    """Return a body, and the headers that it needs."""
    match chance.randrange(10):
        case 0:
            body = b""
        case 1:
            body = chance.randbytes(20)
        case 2 | 3:
            body = make_value(chance).encode()
        case 4 | 5:
            body = make_lines(chance)
        case 6 if chance.random() < 0.2:
            body = b'{"payloads":["%s"]}' % (b"x" * 40_000)
        case _:
            body = make_collection(chance)
    if len(body) > _MOST_BYTES:
        body = b"[" * 100  # what takes long to decode is tested by itself
    coding = chance.choice(("gzip", "zstd", "deflate", "identity", "br", *[""] * 25))
    pack: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress,
        "zstd": zstandard.compress,
        "deflate": zlib.compress,
    }
    if coding in pack and chance.random() < 0.9:
        body = pack[coding](body)
    return body, [f"Content-Encoding: {coding}".encode()] if coding else []


def make_chunks(body: bytes, chance: random.Random, *, odd: bool) -> bytes:
    """Return a body in chunks, with extensions and trailers now and then."""
    chunks = b"".join(
        chance.choice((b"%x", b"%X", b"00%x")) % len(one)
        + chance.choice((b"", b"", b"", b";a", b';a="b;\\" ";c=d'))
        + b"\r\n%b\r\n" % one
        for one in pieces_of(body, chance)
        if one
    )
    trailers = chance.choice((b"", b"", b"X: y\r\n", b"Idempotency-Key: k\r\nX:\r\n"))
    whole = chunks + chance.choice((b"0", b"0", b"000", b"0;a")) + b"\r\n" + trailers + b"\r\n"
    return mutate(whole, chance, _ODD_CHUNKS) if odd and chance.random() < 0.3 else whole
