"""Random responses to uploads: each upload ends with a stored object or a StoreError."""

from __future__ import annotations

import re
import time
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import h11
import httpx
import pytest
import trio

from payloadd.config.parsers import S3Url
from payloadd.errors import StoreError, TransientStoreError
from payloadd.storage.http1.response import MOST_READ, ResponseParser
from payloadd.storage.s3.aws_config import AwsConfiguration
from payloadd.storage.s3.credentials import Access, StaticCredentials
from payloadd.storage.s3.errors import BY_CODE
from payloadd.storage.s3.sigv4 import Keys
from payloadd.storage.s3.store import S3Store
from tests.support.fuzz import mutate, pieces_of
from tests.support.objects import MEMBERS, plain

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Callable

    from payloadd.config.settings import Settings
    from tests.support.fuzz import Fuzz

OBJECT: Final = plain(b'{"a":1}\n')
PUT_WITHIN: Final = 60.0
"""Seconds after which an upload has failed the test."""
_CANCEL_AFTER: Final = 0.02
"""Seconds after which an upload is cancelled if the server keeps the connection open."""
_LONGEST_ERROR: Final = 1000
_LONGEST_WAIT: Final = 300.0

_STATUSES: Final = (
    *(200, 200, 200, 201, 204, 206, 299, 100, 101, 103, 199, 300, 301, 304, 307, 400, 400, 403),
    *(404, 408, 409, 411, 412, 413, 429, 500, 501, 503, 507, 599),
)
_ODD_STATUSES: Final = (600, 999, 99, 0, 20, 2000)
_CODES: Final = (*BY_CODE, "NoSuchBucket", "AccessDenied", "KMS.Disabled", "", "x" * 65, "é")
_CORRECTED: Final = ("RequestTimeTooSkewed", "AuthorizationHeaderMalformed", "ExpiredToken")
"""Codes after which the store corrects a value and sends the request again."""
_DATES: Final = (
    *("Thu, 26 Nov 2026 20:00:00 GMT", "Thu, 01 Jan 0001 00:00:00 GMT", "", "0", ",", " , "),
    *("Fri, 31 Dec 9999 23:59:59 GMT", "Fri, 31 Dec 9999 23:59:59 -2359", "1 Jan 99999 0:0:0 +0"),
    *("Sun, 00 Jan 2026 00:00:00 GMT", "Mon, 1 Jan 2026 25:61:61 +9999", "Thu Jan  1 1970"),
    *("1 Jan 2026 00:00:00 -0000", "Sun, 06 Nov 1994 08:49:37 GMT GMT", "2026-11-26T20:00:00Z"),
)
_TIMES: Final = (
    *("2026-11-26T20:00:00Z", "2026-11-26T20:00:00.123Z", "0001-01-01T00:00:00Z"),
    *("9999-12-31T23:59:59Z", "20261126T200000000000Z", "2026-13-40T99:99:99Z", "-" * 25),
    *("2026-11-26T20:00:00", "1970-01-01T00:00:00.000Z", "2026-W48-4T20:00:00Z"),
)
_WAITS: Final = ("0", "1", "120", "-1", "1.5", "9" * 12, "9" * 13, "", "soon", "٣", "0x10")
_ETAGS: Final = ('"0"', '""', "", '"d41d8cd98f00b204e9800998ecf8427e"', 'W/"1"', "é")
_CHECKSUMS: Final = ("LSFjAQ==", "AAAAAA==", "", "é", "AAAA-1")
_LOCATIONS: Final = (
    "http://127.0.0.1:1/",
    "/",
    "//[",
    "http://evil.example/",
    "",
    "é",
    "http://[::1",
)
_REGIONS: Final = ("eu-west-1", "us-east-1", "", "-", "a", "evil.example/", "A", "é", "x" * 40)
_TEXTS: Final = (
    *("no", "", "a\r\nb", "\x1b[31m", "&#x110000;", "&amp;lt;", "&#0;", "\u202e", "x" * 2000),
    *("&" * 500, "<", "é", "&#55296;"),
)
_ODD: Final = (
    *(b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b"\r\n\r\n", b"0\r\n\r\n", b"\xff", b"\t"),
    *(b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"chunked"),
    *(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n"),
    *(b"<Error>", b"<Code>", b"</Code>", b"<Error", b"]]>", b"ffffffff\r\n", b"-1\r\n"),
)


def make_response(chance: random.Random) -> bytes:
    """Return a response, mostly a valid one, or the beginning of a response."""
    interim = b"".join(
        b"HTTP/1.1 %d Wait\r\nA: b\r\n\r\n" % chance.choice((100, 102, 103, 199))
        for _ in range(chance.choice((0, 0, 0, 1, 2)))
    )
    status = chance.choice(_STATUSES if chance.random() < 0.97 else _ODD_STATUSES)
    version = chance.choice((b"1.1", b"1.0") if chance.random() < 0.97 else (b"2.0", b"1.2"))
    body = make_body(chance)
    lines = [b"HTTP/%b %d %b" % (version, status, chance.choice((b"", b"OK", b"\xff", b"a b")))]
    lines += make_fields(chance)
    match chance.randrange(6):
        case 0 | 1 | 2:
            length = len(body) + chance.choice((0,) * 20 + (1, -1))
            lines.append(b"Content-Length: %d" % length)
        case 3 | 4:
            lines.append(b"Transfer-Encoding: chunked")
            body = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in pieces_of(body, chance))
            body += chance.choice((b"0\r\n\r\n",) * 9 + (b"0\r\nA: b\r\n\r\n", b""))
        case _:
            pass  # until the end of the connection
    response = interim + b"\r\n".join([*lines, b"", b""]) + body
    if chance.random() < 0.3:
        response = mutate(response, chance, _ODD)
    if chance.random() < 0.1:
        response = response[: chance.randrange(len(response) + 1)]
    return response


def make_fields(chance: random.Random) -> list[bytes]:
    """Return header lines that the store reads."""
    fields = (
        f"Date: {chance.choice(_DATES)}",
        f"Retry-After: {chance.choice(_WAITS)}",
        f"x-amz-retry-after: {chance.choice(_WAITS)}",
        f"x-amz-bucket-region: {chance.choice(_REGIONS)}",
        f"x-amz-request-id: {chance.choice(_TEXTS[:2])}" + "y" * chance.choice((0, 200)),
        f"Connection: {chance.choice(('close', 'keep-alive', 'upgrade'))}",
        "Content-Encoding: gzip",
        f"ETag: {chance.choice(_ETAGS)}",
        f"x-amz-checksum-crc32: {chance.choice(_CHECKSUMS)}",
        f"Location: {chance.choice(_LOCATIONS)}",
        "X: " + "y" * chance.choice((0, 100, 20_000)),
    )
    return [line.encode() for line in chance.sample(fields, chance.choice((0, 0, 1, 2, 4)))]


def make_body(chance: random.Random) -> bytes:
    """Return a body: an error document with values out of bounds, or random bytes."""
    match chance.randrange(6):
        case 0:
            return b""
        case 1:
            return chance.randbytes(chance.choice((1, 100, 5000)))
        case 2 if chance.random() < 0.02:
            return b"x" * (2 * MOST_READ)
        case _:
            parts = (
                f"<Code>{chance.choice(_CODES)}</Code>",
                f"<Code>{chance.choice(_CORRECTED)}</Code>",
                f"<Message>{chance.choice(_TEXTS)}</Message>",
                f"<Region>{chance.choice(_REGIONS)}</Region>",
                f"<ServerTime>{chance.choice(_TIMES)}</ServerTime>",
            )
            inner = "".join(chance.sample(parts, chance.randrange(len(parts) + 1)))
            return f'<?xml version="1.0"?>\n<Error>{inner}</Error>'.encode()


# --- the expected results -------------------------------------------------------------

_STATUS_LINE: Final = re.compile(rb"[\r\n]*HTTP/\d\.\d (\d{3})(?:[ \t][^\r\n]*)?\r?\n")
_HEAD_END: Final = re.compile(rb"\n\r?\n")


def final_status(response: bytes) -> int | None:
    """Return the status of the first final response; None if its head is not complete."""
    start = 0
    while True:
        line = _STATUS_LINE.match(response, start)
        end = _HEAD_END.search(response, line.end() - 1) if line else None
        if line is None or end is None:
            return None
        status = int(line[1])
        if status >= 200:
            return status
        start = end.end()


def read(pieces: list[bytes]) -> tuple[int, bytes] | None:
    """Return status and body of a response in pieces; None if it is no response."""
    parser = ResponseParser("PUT")
    try:
        for piece in [*pieces, b""]:
            parser.feed(piece)
            if parser.complete:
                break
    except httpx.RemoteProtocolError:
        return None
    assert parser.complete
    assert all(b"\n" not in name + value for name, value in parser.headers)
    return parser.status, parser.body


def read_by_h11(response: bytes) -> tuple[int, bytes] | None:
    """Return status and body as h11 reads them; None if it is no response for h11."""
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=2**20)
    connection.send(h11.Request(method="PUT", target="/", headers=[("Host", "x")]))
    connection.send(h11.EndOfMessage())
    if response:
        connection.receive_data(response)
    connection.receive_data(b"")
    status, body = 0, b""
    try:
        while True:
            match connection.next_event():
                case h11.Response(status_code=status):
                    pass
                case h11.Data(data=data):
                    body += bytes(data)
                case h11.EndOfMessage():
                    return status, body
                case h11.ConnectionClosed() | h11.NEED_DATA:
                    return None
    except h11.RemoteProtocolError:
        return None


@pytest.mark.no_cover
def test_a_response_is_read_the_same_in_any_pieces(fuzz: Fuzz) -> None:
    """The network's segments would decide whether an object counts as stored."""
    for chance in fuzz.cases():
        response = make_response(chance)
        whole = read([response] if response else [])
        cut = list(pieces_of(response, chance))
        in_pieces = read(cut)
        for seen in (whole, in_pieces):
            assert seen is None or seen[0] == final_status(response), response
        if len(response) >= MOST_READ:
            # Bytes behind the bound are parsed only if they are in the same piece.
            assert in_pieces is None or len(in_pieces[1]) <= MOST_READ + max(map(len, cut))
            continue
        assert whole == in_pieces, response
        if whole is None:
            continue
        by_h11 = read_by_h11(response)
        assert by_h11 in (None, whole), response


@pytest.mark.no_cover
async def test_an_upload_ends_in_a_stored_object_or_a_store_error(
    fuzz: Fuzz, make_settings: Callable[..., Settings]
) -> None:
    """A worker would end, or an object would count as stored that is not."""
    settings = make_settings()
    async with random_server() as server:
        access = Access(
            StaticCredentials(Keys("k", "s")),
            AwsConfiguration(region="us-east-1", endpoint=server.url),
        )
        for chance in fuzz.cases():
            store = S3Store(settings, S3Url("bucket", ""), access, clock=time.time)
            for _ in range(chance.choice((1, 2, 3))):
                server.begin_case(chance)
                await put(store, server)
            await store.aclose()


async def put(store: S3Store, server: RandomServer) -> None:
    """Put an object and check the result."""
    within = _CANCEL_AFTER if server.holds else PUT_WITHIN
    error: StoreError | None = None
    with trio.move_on_after(within) as scope:
        try:
            await store.put("k", OBJECT, MEMBERS, repeat=False)
        except StoreError as caught:
            error = caught
    assert server.holds or not scope.cancelled_caught, server.sent
    if scope.cancelled_caught:
        return
    if error is None:
        final = final_status(server.sent[-1])
        assert final is not None, server.sent
        assert final == 200, server.sent
        assert b"etag" in server.sent[-1].lower(), server.sent
        return
    assert 0 < len(error.code) <= 64, server.sent
    assert len(str(error)) <= _LONGEST_ERROR, server.sent
    if isinstance(error, TransientStoreError) and error.retry_after is not None:
        assert 0 <= error.retry_after <= _LONGEST_WAIT, server.sent


class RandomServer:
    """A server with a random response to each request."""

    def __init__(self, url: str, chance: random.Random | None = None) -> None:
        self.url = url
        self._chance = chance
        self.holds = False
        """Whether it keeps the connection open after a response."""
        self.sent: list[bytes] = []

    def begin_case(self, chance: random.Random) -> None:
        """Use these random choices for the next requests."""
        self._chance = chance
        self.holds = chance.random() < 0.1
        self.sent.clear()

    async def serve(self, stream: trio.SocketStream) -> None:
        """Respond to the requests of a connection."""
        with suppress(trio.BrokenResourceError):
            while await self._read_request(stream):
                assert self._chance is not None
                response = make_response(self._chance)
                self.sent.append(response)
                for piece in pieces_of(response, self._chance):
                    await stream.send_all(piece)
                if not self.holds:
                    return

    async def _read_request(self, stream: trio.SocketStream) -> bool:
        """Read a request, and return whether there was one."""
        data = b""
        while not (data.startswith(b"HEAD ") and data.endswith(b"\r\n\r\n")) and (
            OBJECT.pieces[0] not in data
        ):
            more = await stream.receive_some()
            if not more:
                return False
            data += more
        return True


@asynccontextmanager
async def random_server() -> AsyncIterator[RandomServer]:
    """Run the server on a port that the kernel chooses."""
    server = RandomServer("")
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, server.serve, 0, host="127.0.0.1")
        listeners: list[trio.SocketListener] = await nursery.start(serve)
        server.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        yield server
        nursery.cancel_scope.cancel()
