"""The kinds of hostile clients: each sends the worst allowed request of its kind."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from ssl import CERT_NONE, MemoryBIO, SSLWantReadError, create_default_context
from typing import TYPE_CHECKING, Final

import zstandard

from tests.bench.hostile import bodies, http2
from tests.bench.hostile.bodies import JSON, MAX_LENGTH, MAX_PAYLOADS, NDJSON, post
from tests.bench.hostile.clients import (
    Client,
    Flooder,
    HalfSender,
    HelloSender,
    Http2Poster,
    Leaver,
    Repeater,
    Round,
    Trickler,
)

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

_CLIENTS: Final = 64
_GZIP: Final = "Content-Encoding: gzip"
_ZSTD: Final = "Content-Encoding: zstd"
_GETS: Final = b"GET /healthz HTTP/1.1\r\nHost: bench\r\n\r\n" * 400
_STREAMS_OF_A_CONNECTION: Final = 20_000
_BUSY: Final = 1500
"""Number of connections, more than MAX_CONNECTIONS."""
_EVERY: Final = 0.5
"""Seconds after which each busy connection sends bytes again."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of hostile clients."""

    about: str
    prepare: Callable[[Counter[str]], Callable[[], Client]]
    """Make the bytes once, and return a function that makes a client for each connection."""
    connections: int = _CLIENTS
    accepted: bool = False
    """Whether its payloads are accepted; large batches are measured as well then."""
    tls: bool = False
    """Whether all clients, honest ones too, use TLS."""
    more_than_slots: bool = False
    """Whether connections exceed MAX_CONNECTIONS, so that honest clients wait for a slot."""


def _posts(about: str, make: Callable[[], bytes], *, count: int = 64, ok: bool = True) -> Kind:
    """Return a kind that repeats one request."""

    def prepare(tally: Counter[str]) -> Callable[[], Client]:
        return partial(Repeater, tally, [make()])

    return Kind(about, prepare, count, accepted=ok)


def _floods(about: str, make: Callable[[], list[bytes]], *, endless: bool) -> Kind:
    """Return a kind that sends HTTP/2 frames without waiting."""

    def prepare(tally: Counter[str]) -> Callable[[], Client]:
        return partial(Flooder, tally, make(), endless=endless)

    return Kind(about, prepare)


def _pipelined(connections: int) -> Kind:
    def prepare(tally: Counter[str]) -> Callable[[], Client]:
        return partial(Repeater, tally, [_GETS], 400)

    return Kind(f"{connections} connections x 400 GETs of /healthz", prepare, connections)


def _trickling(
    first: bytes, piece: bytes, every: float
) -> Callable[[Counter[str]], Callable[[], Client]]:
    def prepare(tally: Counter[str]) -> Callable[[], Client]:
        return partial(Trickler, tally, first, piece, every)

    return prepare


def _trickles(about: str, first: bytes, piece: bytes, every: float, connections: int) -> Kind:
    return Kind(about, _trickling(first, piece, every), connections)


def _halves(about: str, length: int, connections: int) -> Kind:
    def prepare(_tally: Counter[str]) -> Callable[[], Client]:
        data = bodies.post_without_body(length) + b" " * (length - 1)
        return partial(HalfSender, Round(connections), data)

    return Kind(about, prepare, connections)


def _http2_posts(about: str, body: Callable[[], bytes]) -> Kind:
    def prepare(tally: Counter[str]) -> Callable[[], Client]:
        return partial(Http2Poster, tally, body(), 16)

    return Kind(about, prepare, accepted=True)


def _zstd_lines(count: int) -> bytes:
    return post(zstandard.compress(bodies.lines(count)), NDJSON, _ZSTD)


def _zstd_members(count: int) -> bytes:
    return post(zstandard.compress(bodies.members(count)), JSON, _ZSTD)


def _client_hello() -> bytes:
    """Return the first record of a TLS handshake, usable on any number of connections."""
    context = create_default_context()
    context.check_hostname = False
    context.verify_mode = CERT_NONE
    outgoing = MemoryBIO()
    try:
        context.wrap_bio(MemoryBIO(), outgoing).do_handshake()
    except SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake without a server")


def _hellos(_tally: Counter[str]) -> Callable[[], Client]:
    return partial(HelloSender, _client_hello())


def _streams(*, reset: bool) -> list[bytes]:
    step = 2 * 100
    last = 2 * _STREAMS_OF_A_CONNECTION
    blocks = (range(first, first + step, 2) for first in range(1, last, step))
    return [http2.requests(streams, reset=reset) for streams in blocks]


KINDS: Final[dict[str, Kind]] = {
    # --- documents ---
    "deep": _posts("16 MiB of payloads nested 900 deep", lambda: post(bodies.deep(), JSON)),
    "too-deep": _posts(
        "16 MiB of opening brackets", lambda: post(bodies.too_deep(), JSON), ok=False
    ),
    "members": _posts(
        "a JSON array of MAX_PAYLOADS ones", lambda: post(bodies.members(MAX_PAYLOADS), JSON)
    ),
    "members-over": _posts(
        "and of one more", lambda: post(bodies.members(MAX_PAYLOADS + 1), JSON), ok=False
    ),
    "most-members": _posts("16 MiB of ones", lambda: post(bodies.most_members(), JSON), ok=False),
    "wide": _posts("16 MiB of ones in one payload", lambda: post(bodies.one_wide_payload(), JSON)),
    "lines": _posts(
        "NDJSON, MAX_PAYLOADS lines of one byte", lambda: post(bodies.lines(MAX_PAYLOADS), NDJSON)
    ),
    "most-lines": _posts(
        "NDJSON, 16 MiB of such lines",
        lambda: post(bodies.lines(MAX_LENGTH // 2), NDJSON),
        ok=False,
    ),
    "blank-lines": _posts("NDJSON, 16 MiB of line feeds", lambda: post(b"\n" * MAX_LENGTH, NDJSON)),
    "jobs": _posts(
        "10,000 payloads of one byte in 64 bytes of zstd, 1,000 connections",
        lambda: _zstd_lines(10_000),
        count=1000,
    ),
    # --- compression ---
    "zstd-lines": _posts(
        "226 bytes of zstd that are 524,288 lines", lambda: _zstd_lines(1 << 19), ok=False
    ),
    "zstd-lines-400": _posts(
        "the same on 400 connections", lambda: _zstd_lines(1 << 19), count=400, ok=False
    ),
    "zstd-members": _posts(
        "zstd of a JSON array of MAX_PAYLOADS ones", lambda: _zstd_members(MAX_PAYLOADS)
    ),
    "zstd-most-lines": _posts(
        "zstd of 16 MiB of lines", lambda: _zstd_lines(MAX_LENGTH // 2), ok=False
    ),
    "gzip-spaces": _posts(
        "gzip of 16 MiB, spaces but for one payload",
        lambda: post(bodies.gzipped(bodies.spaces(MAX_LENGTH)), JSON, _GZIP),
    ),
    "gzip-beyond": _posts(
        "gzip of 160 MiB of spaces",
        lambda: post(bodies.gzipped(bodies.spaces(10 * MAX_LENGTH)), JSON, _GZIP),
        ok=False,
    ),
    "zstd-beyond": _posts(
        "zstd of 160 MiB of spaces",
        lambda: post(zstandard.compress(bodies.spaces(10 * MAX_LENGTH)), JSON, _ZSTD),
        ok=False,
    ),
    "gzip-members": _posts(
        "16 MiB of empty gzip members", lambda: post(bodies.gzip_members(), NDJSON, _GZIP)
    ),
    "zstd-frames": _posts(
        "16 MiB of empty zstd frames", lambda: post(bodies.zstd_frames(), NDJSON, _ZSTD)
    ),
    # --- large bodies ---
    "large": _posts(
        "16 MiB of telemetry, Content-Length",
        lambda: post(bodies.telemetry(MAX_LENGTH), NDJSON),
    ),
    "large-chunked": _posts(
        "16 MiB of telemetry, chunked",
        lambda: bodies.post_chunked(bodies.telemetry(MAX_LENGTH), NDJSON),
    ),
    "tiny-chunks": _posts(
        "1 MiB of lines in chunks of one byte",
        lambda: bodies.post_chunked(bodies.lines(1 << 16), NDJSON, size=1),
    ),
    # --- pipelines and HTTP/2 ---
    "pipelined-256": _pipelined(256),
    "pipelined-1000": _pipelined(1000),
    "h2-ping": _floods("PING after PING", lambda: [http2.pings(1000)], endless=True),
    "h2-settings": _floods("SETTINGS after SETTINGS", lambda: [http2.settings(1000)], endless=True),
    "h2-reset": _floods("requests cancelled at once", lambda: _streams(reset=True), endless=False),
    "h2-headers": _floods(
        "requests that wait for no answer", lambda: _streams(reset=False), endless=False
    ),
    "h2-endless": _floods(
        "a head of 1,000 CONTINUATION frames",
        lambda: [http2.endless_headers(1000)],
        endless=False,
    ),
    "h2-bodies": _http2_posts(
        "16 streams a connection, 1 MiB of telemetry each", lambda: bodies.telemetry(1 << 20)
    ),
    # --- slow clients, and many ---
    "slow-heads": _trickles(
        "1,000 heads, one byte a second", b"POST /v1/payloads HTTP/1.1\r\nX: ", b"x", 1.0, 1000
    ),
    "slow-bodies": _trickles(
        "bodies of 16 MiB, one KiB a second",
        bodies.post_without_body(MAX_LENGTH),
        b" " * 1024,
        1.0,
        _CLIENTS,
    ),
    "tls-hellos": Kind(
        "TLS handshakes that end with the server's part, RSA with 2,048 bits", _hellos, tls=True
    ),
    "tls-slow-hellos": Kind(
        "1,000 ClientHellos, one byte a second",
        _trickling(_client_hello()[:100], b"\0", 1.0),
        connections=1000,
        tls=True,
    ),
    "idle": Kind(
        "3,000 connections that say nothing",
        lambda _: Client,
        connections=3000,
        more_than_slots=True,
    ),
    "busy-posts": Kind(
        "1,500 connections, a small POST each every 0.5 s",
        _trickling(b"", post(bodies.members(1), JSON), _EVERY),
        connections=_BUSY,
        more_than_slots=True,
    ),
    "busy-bodies": Kind(
        "1,500 bodies of 64 KiB, one KiB every 0.5 s",
        _trickling(bodies.post_without_body(1 << 16), b" " * 1024, _EVERY),
        connections=_BUSY,
        more_than_slots=True,
    ),
    "churn": Kind("connections that are reset once open", lambda _: Leaver),
    "half-bodies": _halves(
        "1,020 bodies of 1 MiB without the last byte, then broken off", 1 << 20, 1020
    ),
    "half-bodies-16": _halves(
        "64 bodies of 16 MiB without the last byte, then broken off", MAX_LENGTH, _CLIENTS
    ),
}
