"""Random bodies: accepted if, and only if, a strict reference accepts them, with equal payloads."""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest
import zstandard

from payloadd.ingress.body import Limits, decode
from payloadd.ingress.decompression import TooMuchWorkError
from payloadd.ingress.large_bodies import DecoderProcess, LargeBody
from payloadd.ingress.problem import Problem
from tests.ingress.decoding import raw_deflate
from tests.ingress.random_bodies import MOST_PAYLOADS, make_collection, make_lines, make_value
from tests.ingress.strict_json import (
    InvalidJsonError,
    WrongShapeError,
    collection_in,
    document_in,
    lines_in,
)
from tests.support.fuzz import known_cases, mutate

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    from tests.support.fuzz import Fuzz

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
LIMITS: Final = Limits(2**20, MOST_PAYLOADS)

_ODD: Final = (
    *(b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u", b"\\ud800", b"\\udc00", b"\0"),
    *(b"\n", b"\r", b"\t", b" ", b"\x0b", b"\x0c", b"\x1f", b"\x7f", b"\xc2\xa0", b"\xe2\x80\xa8"),
    *(b"\xef\xbb\xbf", b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xc3"),
    *(b"-", b"+", b"0", b".", b"e", b"E+", b"NaN", b"Infinity", b"true", b"nul", b"1", b"//"),
    *(b'"payloads":[]', b'"data":[1]', b'"payload\\u0073"', b'"a":1,', b"'", b"/*", b"0x1"),
)


class Case(NamedTuple):
    """A body as a client sends it."""

    body: bytes
    kind: str
    coding: str | None = None
    document: bool = False


Outcome = list[bytes] | str
"""Payloads, or the code of the answer that refuses them."""


def expected(body: bytes, kind: str, *, document: bool) -> Outcome:
    """Return the outcome of the reference."""
    try:
        if document:
            return [document_in(body)]
        payloads = collection_in(body) if kind == JSON else lines_in(body)
    except InvalidJsonError:
        return "MALFORMED"
    except WrongShapeError:
        return "NOT_A_COLLECTION"
    return "TOO_LARGE" if len(payloads) > MOST_PAYLOADS else payloads


def in_loop(case: Case) -> Outcome | None:
    """Return the outcome of the event loop; None if it leaves the body to the other process."""
    body, kind, coding, document = case
    try:
        found = decode(body, kind, coding, LIMITS, document=document, in_loop=True)
        return [bytes(payload) for payload in found]
    except TooMuchWorkError:
        return None
    except Problem as problem:
        return problem.code


def behind_a_head(case: Case) -> Outcome:
    """Return the outcome of a body that begins behind a head."""
    head = b"POST / HTTP/1.1\r\nX: \xff\r\n\r\n"
    body, kind, coding, document = case
    try:
        found = decode(head + body, kind, coding, LIMITS, len(head), document=document)
        return [bytes(one) for one in found]
    except Problem as problem:
        return problem.code


@contextmanager
def in_a_process() -> Iterator[Callable[[Case], Outcome]]:
    """Start the process for large bodies, and yield a function that decodes a body in it."""
    process = DecoderProcess()

    def outcome(case: Case) -> Outcome:
        body, kind, coding, document = case
        # The constructor is not used: it asks trio for the time.
        large = object.__new__(LargeBody)
        large.data, large.start = b"head" + body, 4
        large.content_type, large.content_encoding = kind, coding
        large.document = document
        decoded = process.decode(large, LIMITS)
        if isinstance(decoded, Problem):
            return decoded.code
        payloads = []
        start = 0
        for size in decoded.sizes:
            payloads.append(decoded.text[start : start + size])
            start += size + 1
            assert decoded.text[start - 1 : start] == b"\n"
        assert start == len(decoded.text)
        return payloads

    try:
        yield outcome
        assert not process.ended
    finally:
        process.end()


def make_case(chance: random.Random) -> Case:
    """Return a body with few faults."""
    kind = chance.choice((JSON, NDJSON))
    body = make_collection(chance) if kind == JSON else make_lines(chance)
    document = kind == JSON and chance.random() < 0.3
    if document and chance.random() < 0.7:
        body = make_value(chance).encode()
    if chance.random() < 0.2:
        body = b"\xef\xbb\xbf" + body
    if chance.random() < 0.6:
        body = mutate(body, chance, _ODD)
    return Case(body, kind, None, document)


def test_random_bodies_are_neither_all_valid_nor_all_wrong() -> None:
    """The next test would test nothing."""
    found: Counter[str] = Counter()
    for chance in known_cases(300):
        case = make_case(chance)
        reference = expected(case.body, case.kind, document=case.document)
        found[reference if isinstance(reference, str) else f"{case.kind} {case.document}"] += 1
    accepted = (f"{JSON} False", f"{JSON} True", f"{NDJSON} False")
    assert min(found[one] for one in (*accepted, "MALFORMED", "NOT_A_COLLECTION")) >= 5, found


@pytest.mark.no_cover
def test_random_bodies_are_accepted_like_the_reference(fuzz: Fuzz) -> None:
    """Otherwise broken JSON would be stored for good, or good JSON be refused or changed."""
    with in_a_process() as process_outcome:
        for chance in fuzz.cases():
            case = make_case(chance)
            reference = expected(case.body, case.kind, document=case.document)
            if chance.random() < 0.3:
                case = _compressed(case, chance)
            ways = [in_loop, chance.choice((behind_a_head, process_outcome))]
            for way in ways:
                compare(way(case), reference, case)


def compare(outcome: Outcome | None, reference: Outcome, case: Case) -> None:
    """Raise AssertionError if the reference does not allow an outcome.

    If a body has several faults, any of them may be named. Only JSON of a wrong shape has more
    outcomes: a duplicate ``payloads`` is malformed, and so is a document that is nested too deeply.
    """
    if outcome is None:
        return
    if reference == "NOT_A_COLLECTION":
        assert outcome in ("NOT_A_COLLECTION", "MALFORMED", "TOO_LARGE"), case
    elif reference == "MALFORMED":
        # Too many lines are found before all of them have been parsed.
        assert outcome in ("MALFORMED", "TOO_LARGE"), case
    else:
        assert outcome == reference, case


def _compressed(case: Case, chance: random.Random) -> Case:
    """Return the same body in one or two members or frames, or as a deflate body."""
    body = case.body
    coding = chance.choice(("gzip", "zstd", "deflate"))
    if coding == "deflate":
        packed = chance.choice((zlib.compress, raw_deflate))(body)
        return case._replace(body=packed, coding=coding)
    cut = chance.randrange(len(body) + 1)
    parts = (body[:cut], body[cut:]) if chance.random() < 0.5 else (body,)
    pack = zstandard.compress if coding == "zstd" else _gzip
    return case._replace(body=b"".join(map(pack, parts)), coding=coding)


def _gzip(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)
