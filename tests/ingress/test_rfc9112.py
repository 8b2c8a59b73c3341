"""RFC 9112, sections 2 to 9: a row for each MUST that concerns a server, on both ways in.

The rows of RFC 9110 are those that RFC 9112 refers to. A server sends no transfer codings and is no
proxy: sentences about these have no row.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

import pytest
import trio

from tests.ingress.rig import COLLECTION, SOON, post, running

if TYPE_CHECKING:
    from tests.ingress.rig import Answer, Wire

FIRST = b"POST /v1/payloads HTTP/1.1"
OLD = b"POST /v1/payloads HTTP/1.0"
HOST = b"Host: x"
TYPE = b"Content-Type: application/json"
LENGTH = b"Content-Length: 22"
CHUNKED = b"Transfer-Encoding: chunked"
CLOSE = b"Connection: close"
CHUNKS = b"16\r\n" + COLLECTION + b"\r\n0\r\n\r\n"
PAGE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
TAKEN = [b"1", b'"two"']


def request(*lines: bytes, start: bytes = FIRST, body: bytes = COLLECTION) -> bytes:
    """Return a request with these header lines and no others."""
    return b"".join(line + b"\r\n" for line in (start, *lines, b"")) + body


class Row(NamedTuple):
    """A sentence, what a client sends, and what it has to get."""

    section: str
    rule: str
    sent: bytes
    statuses: tuple[int, ...]
    """The statuses of the answers, in their order."""
    closes: bool = False
    """Whether the server closes the connection after them."""
    ends: bool = False
    """Whether the client closes its sending side after ``sent``."""


REFUSED = (400,)

ROWS = (
    Row(
        "2.2", "A recipient MUST parse an HTTP message as a sequence of octets in an encoding that"
        " is a superset of US-ASCII.",
        request(HOST, TYPE, LENGTH, b"X: \xe2\x28\xa1\xff"), (202,),
    ),
    Row(
        "2.2", "A recipient of a bare CR MUST consider that element to be invalid or replace each"
        " bare CR with SP (in a value).",
        request(HOST, TYPE, LENGTH, b"X: a\rb"), REFUSED, closes=True,
    ),
    Row(
        "2.2", "The same, in the first line.",
        request(HOST, TYPE, LENGTH, start=b"POST /v1/payloads\r HTTP/1.1"), REFUSED, closes=True,
    ),
    Row(
        "2.2", "The same, in the size of a chunk.",
        request(HOST, TYPE, CHUNKED, body=b"16\r\r\n" + CHUNKS[4:]), REFUSED, closes=True,
    ),
    Row(
        "2.2", "A recipient that receives whitespace between the start-line and the first header"
        " field MUST either reject the message or consume each such line.",
        request(b" " + HOST, HOST, TYPE, LENGTH), REFUSED, closes=True,
    ),
    Row(
        "2.3", "HTTP-version is case-sensitive.",
        request(HOST, TYPE, LENGTH, start=b"POST /v1/payloads http/1.1"), REFUSED, closes=True,
    ),
    Row(
        "2.3", "A minor version above that of the server is handled as the server's (RFC 9110,"
        " section 2.5).",
        request(HOST, TYPE, LENGTH, start=b"POST /v1/payloads HTTP/1.7"), (202,),
    ),
    Row(
        "3", "A single SP separates method, target and version; lenient parsing can result in"
        " smuggling.",
        request(HOST, TYPE, LENGTH, start=b"POST /v1/payloads\tHTTP/1.1"), REFUSED, closes=True,
    ),
    Row(
        "3", "A server MUST respond with 414 to a request-target longer than any URI it wishes to"
        " parse: here the whole head is limited, with a 400.",
        request(HOST, start=b"GET /" + b"a" * 17_000 + b" HTTP/1.1"), REFUSED, closes=True,
    ),
    Row(
        "3.2", "A server MUST respond with 400 to any HTTP/1.1 request that lacks a Host.",
        request(TYPE, LENGTH), REFUSED, closes=True,
    ),
    Row(
        "3.2", "... of a higher minor version, too (RFC 9110, section 2.5).",
        request(TYPE, LENGTH, start=b"POST /v1/payloads HTTP/1.7"), REFUSED, closes=True,
    ),
    Row(
        "3.2", "... and to any request that contains more than one Host.",
        request(HOST, TYPE, LENGTH, HOST), REFUSED, closes=True,
    ),
    Row(
        "3.2", "... or a Host with an invalid field value.",
        request(b"Host: x/y", TYPE, LENGTH), REFUSED, closes=True,
    ),
    Row("3.2", "HTTP/1.0 needs no Host.", request(TYPE, LENGTH, start=OLD), (202,), closes=True),
    Row(
        "3.2", "An invalid request-target is no reason to guess another one.",
        request(HOST, TYPE, LENGTH, start=b"POST v1/payloads HTTP/1.1"), REFUSED, closes=True,
    ),
    Row(
        "3.2.2", "A server MUST accept the absolute-form in requests.",
        request(HOST, TYPE, LENGTH, start=b"POST http://x/v1/payloads HTTP/1.1"), (202,),
    ),
    Row(
        "3.2.2", "An origin server MUST ignore the received Host and use the host of the"
        " request-target.",
        request(b"Host: other:1", TYPE, LENGTH, start=b"POST http://x/v1/payloads HTTP/1.1"),
        (202,),
    ),
    Row(
        "5", "Each field line consists of a field name followed by a colon.",
        request(HOST, TYPE, LENGTH, b"X"), REFUSED, closes=True,
    ),
    Row(
        "5.1", "A server MUST reject, with 400, any request that contains whitespace between a"
        " header field name and colon.",
        request(HOST, TYPE, b"Content-Length : 22"), REFUSED, closes=True,
    ),
    Row("5.1", "The same, with a tab.", request(HOST, b"X\t: y"), REFUSED, closes=True),
    Row(
        "5.1", "OWS around a value is excluded from it.",
        request(b"Host:x", b"Content-Type:  application/json\t ", b"Content-Length:\t22 "), (202,),
    ),
    Row(
        "5.2", "A server that receives an obs-fold MUST either reject the message with 400 or"
        " replace each obs-fold with SP.",
        request(HOST, TYPE, LENGTH, b"X: a\r\n b"), REFUSED, closes=True,
    ),
    Row(
        "5.5", "Values with NUL are invalid, and MUST be rejected or replaced (RFC 9110).",
        request(HOST, TYPE, LENGTH, b"X: a\0b"), REFUSED, closes=True,
    ),
    Row(
        "6.1", "A recipient MUST be able to parse the chunked transfer coding.",
        request(HOST, TYPE, CHUNKED, body=CHUNKS), (202,),
    ),
    Row(
        "6.1", "A server MUST close the connection after responding to a request with both"
        " Content-Length and Transfer-Encoding, and MAY reject it.",
        request(HOST, TYPE, LENGTH, CHUNKED, body=CHUNKS), REFUSED, closes=True,
    ),
    Row(
        "6.1", "A server that receives an HTTP/1.0 message with Transfer-Encoding MUST treat it as"
        " if the framing is faulty, and close the connection.",
        request(HOST, TYPE, CHUNKED, start=OLD, body=CHUNKS), REFUSED, closes=True,
    ),
    Row(
        "6.3", "If the chunked transfer coding is not the final encoding of a request, the server"
        " MUST respond with 400 and then close the connection.",
        request(HOST, TYPE, b"Transfer-Encoding: chunked, gzip", body=CHUNKS), REFUSED, closes=True,
    ),
    Row(
        "6.3", "The same, with an unknown coding alone.",
        request(HOST, TYPE, b"Transfer-Encoding: xchunked", body=CHUNKS), REFUSED, closes=True,
    ),
    Row(
        "7", "A sender MUST NOT apply chunked more than once, and a recipient cannot know the"
        " length of such a message.",
        request(HOST, TYPE, b"Transfer-Encoding: chunked, chunked", body=CHUNKS), REFUSED,
        closes=True,
    ),
    Row("7", "Coding names are case-insensitive.",
        request(HOST, TYPE, b"TRANSFER-ENCODING: CHUNKED", body=CHUNKS), (202,)),
    *(
        Row(
            "6.3", "If a request has an invalid Content-Length, the server MUST respond with 400"
            " and then close the connection.",
            request(HOST, TYPE, *lines), REFUSED, closes=True,
        )
        for lines in (
            [b"Content-Length: x"], [b"Content-Length: +22"], [b"Content-Length: -1"],
            [b"Content-Length: 22 22"], [b"Content-Length: 0x16"], [b"Content-Length:"],
            [b"Content-Length: 22, 21"], [LENGTH, b"Content-Length: 21"],
        )
    ),
    Row(
        "6.3", "Equal lengths: rejected, as RFC 9110 allows (section 8.6).",
        request(HOST, TYPE, LENGTH, LENGTH), REFUSED, closes=True,
    ),
    Row(
        "6.2", "A recipient MUST anticipate potentially large decimal numerals (RFC 9110, section"
        " 8.6).",
        request(HOST, TYPE, b"Content-Length: 18446744073709551638"), REFUSED, closes=True,
    ),
    Row(
        "6.3", "Without Transfer-Encoding and Content-Length the body length is zero.",
        request(HOST, b"Content-Type: x/y", body=b"") + PAGE, (415, 200),
    ),
    Row(
        "6.3", "If the sender closes the connection before the indicated number of octets are"
        " received, the recipient MUST consider the message incomplete and close.",
        request(HOST, TYPE, b"Content-Length: 23"), REFUSED, closes=True, ends=True,
    ),
    Row(
        "7.1", "A recipient MUST be able to parse and decode the chunked transfer coding.",
        request(HOST, TYPE, CHUNKED, body=b"0A\r\n%b\r\n00c\r\n%b\r\n000\r\n\r\n" % (
            COLLECTION[:10], COLLECTION[10:])), (202,),
    ),
    *(
        Row(
            "7.1", "Recipients MUST anticipate potentially large hexadecimal numerals.",
            request(HOST, TYPE, CHUNKED, body=size + b"\r\n" + CHUNKS[4:]), REFUSED, closes=True,
        )
        for size in (b"10000000000000016", b"FFFFFFFFFFFFFFFFF16")
    ),
    *(
        Row(
            "7.1", "A chunk-size is a string of hex digits.",
            request(HOST, TYPE, CHUNKED, body=size + b"\r\n" + CHUNKS[4:]), REFUSED, closes=True,
        )
        for size in (b"", b"x", b"0x16", b"+16", b"-16", b"16 ", b" 16", b"1_6", b"16\t", b"1 6")
    ),
    Row("7.1", "A chunk ends with CRLF.",
        request(HOST, TYPE, CHUNKED, body=CHUNKS.replace(b"}\r\n", b"}xx")), REFUSED, closes=True),
    Row("7.1", "A size ends with CRLF.",
        request(HOST, TYPE, CHUNKED, body=CHUNKS.replace(b"16\r", b"16")), REFUSED, closes=True),
    Row("7.1", "A chunk is as long as its size says.",
        request(HOST, TYPE, CHUNKED, body=CHUNKS.replace(b"16", b"15")), REFUSED, closes=True),
    *(
        Row(
            "7.1.1", "A recipient MUST ignore unrecognized chunk extensions.",
            request(HOST, TYPE, CHUNKED, body=CHUNKS.replace(b"16", b"16" + extension)), (202,),
        )
        for extension in (b";a", b";a=b", b';a="b \\" c";d')
    ),
    Row(
        "7.1.1", "A server ought to limit the total length of chunk extensions.",
        request(HOST, TYPE, CHUNKED, body=b"16;" + b"a" * 40_000), REFUSED, closes=True,
    ),
    Row(
        "7.1.2", "A recipient MUST NOT merge a trailer into the header section unless it"
        " understands the field.",
        request(HOST, TYPE, CHUNKED, body=CHUNKS[:-2] + b"Content-Type: x/y\r\nA: b\r\n\r\n"),
        (202,),
    ),
    Row("7.1.2", "Trailers follow the grammar of field lines.",
        request(HOST, TYPE, CHUNKED, body=CHUNKS[:-2] + b"A : b\r\n\r\n"), REFUSED, closes=True),
    Row("7.1.2", "A trailer cannot change the framing (RFC 9110, section 6.5.1).",
        request(HOST, TYPE, CHUNKED, body=CHUNKS[:-2] + LENGTH + b"\r\n\r\n"), REFUSED,
        closes=True),
    Row("7.1.2", "Trailers are limited.",
        request(HOST, TYPE, CHUNKED, body=CHUNKS[:-2] + b"A: b\r\n" * 8_000), REFUSED, closes=True),
    Row(
        "8", "A chunked message is incomplete without its zero-sized chunk.",
        request(HOST, TYPE, CHUNKED, body=CHUNKS[:-5]), REFUSED, closes=True, ends=True,
    ),
    Row(
        "8", "... and without the end of its trailer section.",
        request(HOST, TYPE, CHUNKED, body=CHUNKS[:-2]), REFUSED, closes=True, ends=True,
    ),
    Row("8", "A head that ends early is incomplete.", FIRST, REFUSED, closes=True, ends=True),
    Row(
        "9.3", "HTTP/1.1 connections persist without a close option.",
        request(HOST, TYPE, LENGTH) * 3, (202, 202, 202),
    ),
    Row("9.3", "... those of HTTP/1.0 do not.",
        request(TYPE, LENGTH, start=OLD) * 2, (202,), closes=True),
    Row(
        "9.3", "A server MUST read the entire request message body or close the connection after"
        " sending its response.",
        request(HOST, LENGTH, start=b"POST /nothing HTTP/1.1", body=PAGE[:22]), (404,), closes=True,
    ),
    Row(
        "9.3.2", "A server MUST send the responses to pipelined requests in the order that the"
        " requests were received.",
        request(HOST, TYPE, LENGTH) + PAGE + request(HOST, TYPE, CHUNKED, body=CHUNKS)
        + b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" + PAGE, (202, 200, 202, 404, 200),
    ),
    Row(
        "9.6", "A server that receives a close option MUST initiate closure after the final"
        " response, and MUST NOT process any further requests.",
        request(HOST, TYPE, LENGTH, CLOSE) + request(HOST, TYPE, LENGTH), (202,), closes=True,
    ),
    Row(
        "9.6", "The same, in a list, in capitals.",
        request(HOST, TYPE, LENGTH, b"Connection: a, CLOSE ,b") + PAGE, (202,), closes=True,
    ),
    Row(
        "9.6", "A server that sends a close option MUST initiate closure and MUST NOT process any"
        " further requests.",
        b"nonsense\r\n\r\n" + request(HOST, TYPE, LENGTH), REFUSED, closes=True,
    ),
    Row(
        "10.1.1", "A server that receives a 100-continue expectation in an HTTP/1.0 request MUST"
        " ignore it (RFC 9110).",
        request(TYPE, LENGTH, b"Expect: 100-continue", start=OLD), (202,), closes=True,
    ),
)  # fmt: skip

_STATUS_LINE = re.compile(rb"HTTP/1\.1 [1-5][0-9]{2} [\t\x20-\x7e]*\r\n")


async def answers_on(wire: Wire, count: int) -> list[Answer]:
    """Return so many final answers, or those that came before the end of the connection."""
    found: list[Answer] = []
    with suppress(EOFError, trio.BrokenResourceError):
        while len(found) < count:
            answer = await wire.answer()
            if answer.status >= 200:
                found.append(answer)
    return found


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.section} {row.rule[:40]}")
async def test_each_must_of_the_rfc_holds(row: Row) -> None:
    """Otherwise a client or a proxy that relies on the RFC would be misled, or attacked."""
    async with running() as rig, rig.wire() as wire:
        with trio.fail_after(SOON):
            await wire.send(row.sent)
            if row.ends:
                await wire.stream.send_eof()
            answers = await answers_on(wire, len(row.statuses))
            assert tuple(answer.status for answer in answers) == row.statuses
            assert rig.intake.taken == [TAKEN] * row.statuses.count(202)
            assert (answers[-1].headers.get("connection") == "close") is row.closes
            if row.closes:
                assert await wire.rest() == b""
            else:
                await wire.send(post())
                assert (await wire.answer()).status == 202


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    "sent",
    [
        PAGE, b"GET /nothing HTTP/1.0\r\n\r\n", b"OPTIONS /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n", b"nonsense\r\n\r\n", post(), post(b"{"),
    ],
)  # fmt: skip
async def test_the_head_of_every_answer_follows_the_rfc(sent: bytes) -> None:
    """Sections 4 and 6.1 of RFC 9112, and 6.6.1, 8.6 and 9.3.2 of RFC 9110.

    A server MUST send the space before the reason phrase, MUST NOT send Transfer-Encoding to
    HTTP/1.0 or with a 204, MUST NOT send Content-Length with a 204 or a body in an answer to HEAD,
    and MUST send Date.
    """
    async with running() as rig, rig.wire() as wire:
        with trio.fail_after(SOON):
            await wire.send(sent)
            await wire.stream.send_eof()
            received = await wire.rest()
    head, _, body = received.partition(b"\r\n\r\n")
    assert _STATUS_LINE.match(head + b"\r\n")
    lines = head.lower().split(b"\r\n")
    names = [line.partition(b":")[0] for line in lines[1:]]
    assert names.count(b"date") == 1
    assert b"transfer-encoding" not in names
    assert (b"content-length" in names) == (b" 204 " not in lines[0])
    assert (body == b"") == (sent[:4] == b"HEAD" or b" 204 " in lines[0])


@pytest.mark.usefixtures("each_way")
async def test_a_100_is_sent_before_the_body_and_a_final_answer_after_it() -> None:
    """RFC 9110, section 10.1.1: a server that sends a 100 MUST ultimately send a final answer."""
    async with running() as rig, rig.wire() as wire:
        with trio.fail_after(SOON):
            for _ in range(2):
                await wire.send(request(HOST, TYPE, LENGTH, b"Expect: 100-continue", body=b""))
                assert (await wire.answer()).status == 100
                await wire.send(COLLECTION)
                assert (await wire.answer()).status == 202
            await wire.send(request(HOST, LENGTH, b"Expect: 100-continue", body=b""))
            answer = (await answers_on(wire, 1))[0]
            assert (answer.status, answer.headers["connection"]) == (415, "close")
