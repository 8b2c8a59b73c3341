"""Request bodies: accepted byte for byte, and refused with the right code."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from payloadd.ingress import body as bodies
from payloadd.ingress.decompression import TooMuchWorkError
from payloadd.ingress.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 2**20
MOST = 100_000
LIMITS = bodies.Limits(MIB, MOST)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Half of a surrogate pair is refused: see test_half_a_surrogate_pair_is_malformed.
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


def gzipped(data: bytes) -> bytes:
    """Compress to the same bytes every time: they are part of the name of a parametrized test."""
    return gzip.compress(data, mtime=0)


def decode(
    body: bytes, content_type: str | None, content_encoding: str | None, max_length: int
) -> list[bytes]:
    """Decode, and return the payloads as bytes; behind a head the result must be the same."""
    arguments = (content_type, content_encoding, bodies.Limits(max_length, MOST))

    def found(data: bytes, start: int, *, in_loop: bool = False) -> list[bytes] | str | None:
        try:
            payloads = bodies.decode(data, *arguments, start, in_loop=in_loop)
        except Problem as problem:
            return repr((problem.status, problem.code, problem.detail))
        except TooMuchWorkError:
            return None
        return [bytes(payload) for payload in payloads]

    head = b"POST / HTTP/1.1\r\nX: \xff\r\n\r\n"
    whole = found(body, 0)
    assert whole is not None
    assert found(head + body, len(head)) == whole
    assert found(body, 0, in_loop=True) in (whole, None)
    return [*map(bytes, bodies.decode(body, *arguments))]


def from_json(body: bytes, limit: int = MIB) -> list[bytes]:
    """Decode a JSON collection."""
    return decode(body, "application/json", None, limit)


def from_lines(body: bytes) -> list[bytes]:
    """Decode NDJSON."""
    return decode(body, "application/x-ndjson", None, MIB)


def problem_of(
    body: bytes, kind: str | None = "application/json", coding: str | None = None, limit: int = MIB
) -> Problem:
    """Return the Problem of a body that must not be decodable."""
    with pytest.raises(Problem) as caught:
        decode(body, kind, coding, limit)
    return caught.value


def raw_deflate(data: bytes) -> bytes:
    """Compress as the deflate stream alone (RFC 1951), without the zlib header."""
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def bare_zstd(data: bytes, **parameters: Any) -> bytes:  # noqa: ANN401 - zstandard's own
    """Compress as a stream of unknown length, with the given parameters."""
    options = zstandard.ZstdCompressionParameters(**parameters)
    packer = zstandard.ZstdCompressor(compression_params=options).compressobj()
    return packer.compress(data) + packer.flush()


# --- accepted bodies ---------------------------------------------------------------------------


def test_payloads_stay_unchanged() -> None:
    """Otherwise numbers would lose digits or texts change their escapes on the way to the store."""
    payloads = [
        b"1.10", b"-0", b"1e400", b"9" * 400, b'"\\u00e9\\/"', '"é"'.encode(), b"null",
        b'{"b": 1,\t"a":2, "a":3}', b"[]", b'"\\ud83d\\ude00"', b'"\x7f"',
    ]  # fmt: skip
    body = b' {"version":"1","token":null,"more":[{}],"payloads":[ ' + b" ,".join(payloads) + b" ]}"
    assert from_json(body) == payloads
    assert from_lines(b"\n".join(payloads)) == payloads


def test_the_member_data_is_accepted() -> None:
    """Otherwise the first clients, which call the member `data`, would be refused."""
    assert from_json(b'{"data": [1, "two"]}') == [b"1", b'"two"']


@pytest.mark.parametrize("space", [b"", b" \t\r\n"])
def test_arrays_and_the_member_batch_are_collections(space: bytes) -> None:
    """Vector, Fluent Bit and libraries in the style of Segment send these by default."""
    assert from_json(space + b'[1, {"a":\n[2]}]' + space) == [b"1", b'{"a":[2]}']
    assert from_json(b'{"batch": [1, "two"], "sentAt": "now"}') == [b"1", b'"two"']
    assert from_json(b"[]") == []


def test_a_byte_order_mark_is_skipped() -> None:
    """Tools of Windows write it; it would be refused as an invalid character."""
    mark = b"\xef\xbb\xbf"
    assert from_json(mark + b'{"payloads":["\xc3\xa9"]}') == [b'"\xc3\xa9"']
    assert from_json(mark + b"[1]") == [b"1"]
    assert from_lines(mark + b"1\n2\n") == [b"1", b"2"]


@pytest.mark.parametrize(
    "body", [b'{"a": [1,\n 2]}', b'\xef\xbb\xbf{"a":[1, 2]}', b'"text"', b" [1,2]\r\n", b"null"]
)
def test_a_document_is_one_payload(body: bytes) -> None:
    """Webhooks and CloudEvents are documents of any shape, printed in any style."""
    limits = bodies.Limits(MIB, MOST)
    (payload,) = bodies.decode(body, "application/cloudevents+json", None, limits, document=True)
    assert json.loads(bytes(payload)) == json.loads(body.decode("utf-8-sig"))
    assert b"\n" not in bytes(payload)


@pytest.mark.parametrize("body", [b"", b"1 2", b'{"a":1', b"\xff", b"[" * 400_000])
def test_a_document_must_be_json(body: bytes) -> None:
    """A broken document would be stored for good, and break its object for readers."""
    with pytest.raises(Problem) as caught:
        bodies.decode(body, "application/json", None, bodies.Limits(MIB, MOST), document=True)
    assert caught.value.code == "MALFORMED"


def test_lines_that_curl_has_joined_are_explained() -> None:
    """`curl -d @file` removes the line breaks; the error would look like broken JSON."""
    problem = problem_of(b'{"a":1}{"a":2}', "application/x-ndjson")
    assert "--data-binary" in problem.detail
    assert "--data-binary" not in problem_of(b"1\n2 3\n", "application/x-ndjson").detail


def test_a_document_that_is_no_collection_names_the_path_for_documents() -> None:
    """A sender of webhooks would search for an error in its JSON."""
    assert "/v1/payload" in problem_of(b'{"event":"x"}').detail


def test_an_empty_collection_is_accepted() -> None:
    """Otherwise a client that has nothing to send would get an error."""
    assert from_json(b'{"payloads": []}') == []
    assert from_lines(b" \n\n") == []


def test_only_line_breaks_are_removed_from_payloads() -> None:
    """Otherwise a pretty-printed payload would cover several lines of the object."""
    body = b'{"payloads": [\r\n  {\r\n    "a": "x\\ny",\n    "b": [1,\n2]\n  }\n]}'
    assert from_json(body) == [b'{    "a": "x\\ny",    "b": [1,2]  }']


def test_ndjson_allows_windows_line_ends_and_blank_lines() -> None:
    """Otherwise CR LF, blank lines or a missing last line feed would spoil payloads."""
    assert from_lines(b'{"a":1}\r\n\n \t\r\n 2 \n"x"') == [b'{"a":1}', b"2", b'"x"']
    assert decode(b"1\n2\n", "application/jsonl", None, MIB) == [b"1", b"2"]
    assert from_lines(b'{"a":\r1}\n') == [b'{"a":1}']


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json", "Application/JSON", "application/json; charset=utf-8",
        'application/json;charset="UTF-8"', "application/json; charset=utf8; x=y",
    ],
)  # fmt: skip
def test_spellings_of_the_content_type_are_accepted(content_type: str) -> None:
    """Otherwise a client with another valid spelling of the type would get a 415."""
    assert decode(b'{"payloads":[1]}', content_type, None, MIB) == [b"1"]


@given(st.lists(json_values, max_size=5), st.booleans(), st.sampled_from([None, 0, 2, "\t"]))
def test_json_printed_in_any_style_keeps_its_values(
    values: list[Any],
    ascii_only: bool,  # noqa: FBT001 - Hypothesis gives it
    indent: int | str | None,
) -> None:
    """Otherwise some style of printing JSON would change the values."""
    text = json.dumps({"payloads": values}, ensure_ascii=ascii_only, indent=indent)
    payloads = from_json(text.encode())
    assert [json.loads(payload) for payload in payloads] == values
    assert not any(b"\n" in payload for payload in payloads)
    lines = "\r\n".join(json.dumps(value, ensure_ascii=ascii_only) for value in values)
    assert from_lines(lines.encode()) == [line.encode() for line in lines.split("\r\n") if line]


# --- refused bodies ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        b"", b" ", b"{", b'{"payloads":[1', b'{"payloads":[1]', b'{"payloads":[1,]}',
        b'{"payloads":[1],}', b'{"payloads":[]}' + b"\xef\xbb\xbf", b'{"payloads":[NaN]}',
        b'{"payloads":[-Infinity]}', b'{"payloads":["\x01"]}', b'{"payloads":["a\nb"]}',
        b'{"payloads":[01]}', b'{"payloads":[1.]}', b'{"payloads":[+1]}', b'{"payloads":[.5]}',
        b'{"payloads":[1 2]}', b'{"payloads":[tru]}', b"{'payloads':[]}", b'{"payloads":[]} x',
        b'{"payloads":["\\x41"]}', b'{"payloads":["\\u12"]}', b'{"payloads":["\xff"]}',
        b'{"payloads":["\xed\xa0\x80"]}', b'{"payloads":["\xc0\xaf"]}',
        b'{"x":"\x01","payloads":[]}',
        b'{"x":nope,"payloads":[]}', b'{"x":[1,],"payloads":[]}', b'{"x":"\xff","payloads":[]}',
        b"\x00", b'{"payloads":[]}\x00', b"/**/{}", '{"payloads":[]}'.encode("utf-16"),
        b'{"payloads":[1}', b"[1, ", b'{"version":1,"payloads":[', b"[1] [2]", b"5 5",
    ],
)  # fmt: skip
def test_text_that_is_not_json_is_malformed(text: bytes) -> None:
    """Otherwise broken JSON would be stored, or answered with a 500 or a misleading 422."""
    assert problem_of(text).code == "MALFORMED"


@pytest.mark.parametrize("text", [b'"\\ud800"', b'{"\\ud800":1}', b'["\\udc00\\ud800"]'])
def test_half_a_surrogate_pair_is_malformed(text: bytes) -> None:
    """Otherwise readers could not decode the stored payload, or the answer would be a 500."""
    for body in (b'{"payloads":[' + text + b"]}", b'{"payloads":[],"x":' + text + b"}"):
        assert problem_of(body).code == "MALFORMED"
    assert problem_of(text, "application/x-ndjson").code == "MALFORMED"


@pytest.mark.parametrize(
    "deep",
    [b"[" * 100_000, b'{"payloads":' + b"[" * 400_000 + b"]" * 400_000 + b"}", b'{"a":' * 9000],
)
def test_deep_nesting_is_malformed(deep: bytes) -> None:
    """Otherwise a few kilobytes of brackets would cause a 500 or end the process."""
    # The interpreter bounds the depth: about 1,000 levels in Python 3.11, 10,000 in 3.13, and in
    # 3.14 as many as fit on the stack.
    assert problem_of(deep).code == "MALFORMED"
    assert problem_of(deep, "application/x-ndjson").code == "MALFORMED"


@pytest.mark.parametrize("name", [b"payloads", b"data", b"batch"])
@pytest.mark.parametrize(
    "again",
    [
        lambda name: name,
        lambda name: b"".join(b"\\u%04x" % letter for letter in name),
        lambda name: b"\\u%04X" % name[0] + name[1:],
        lambda name: name[:-1] + b"\\u%04X" % name[-1],
    ],
    ids=["plain", "escaped", "first letter", "last letter"],
)
@pytest.mark.parametrize("between", [b"", b'"version":"1",', b'"x":[{}],'])
def test_a_duplicate_member_is_malformed(
    name: bytes, again: Callable[[bytes], bytes], between: bytes
) -> None:
    """Otherwise only the last one would be stored, and the other payloads lost after a 202."""
    for first, second in ((name, again(name)), (again(name), name)):
        body = b'{"%s":[1],%s"%s":[2]}' % (first, between, second)
        assert problem_of(body).code == "MALFORMED"
        # Where a document is too large for the event loop, the other process finds it.
        large = b'{"%s":["%s"],%s"%s":[2]}' % (first, b"x" * (MIB // 2), between, second)
        assert problem_of(large).code == "MALFORMED"


@pytest.mark.parametrize(
    "text",
    [
        b"1", b'"x"', b"null", b"true", b"1e400", b"{}", b'{"payloads":null}',
        b'{"payloads":{}}', b'{"payloads":"x"}', b'{"version":1,"payloads":[]}',
        b'{"token":[],"payloads":[]}', b'{"Payloads":[]}', b'{"payloads":[],"data":[]}',
        b'{"batch":[],"data":[]}', b'{"event":"one payload"}',
    ],
)  # fmt: skip
def test_json_of_another_shape_is_no_collection(text: bytes) -> None:
    """Otherwise a client with valid JSON of the wrong shape would search for a syntax error."""
    assert problem_of(text).code == "NOT_A_COLLECTION"


@pytest.mark.parametrize("line", [b"1 2", b"{", b'{"a":', b"NaN", b'"\xff"', b"x"])
def test_the_detail_names_the_bad_line_of_ndjson(line: bytes) -> None:
    """Otherwise the bad line of a file with a million lines would be hard to find."""
    problem = problem_of(b"1\n\n" + line + b'\n"ok"', "application/x-ndjson")
    assert problem.code == "MALFORMED"
    assert "line 3: " in problem.detail or "UTF-8" in problem.detail


def test_a_value_over_two_lines_is_not_ndjson() -> None:
    """Otherwise two halves of a pretty-printed payload would be accepted as two payloads."""
    assert "line 1: " in problem_of(b'{"a":\n1}', "application/x-ndjson").detail


@pytest.mark.parametrize(
    "content_type",
    [
        None, "", "text/plain", "application/json; charset=latin-1", "application/xml",
        "application/x-www-form-urlencoded", "application/json, application/json", "json",
        "application/jsonx", ";charset=utf-8",
    ],
)  # fmt: skip
def test_other_content_types_are_refused(content_type: str | None) -> None:
    """Otherwise a client that sends a form by mistake would not learn the right type."""
    problem = problem_of(b'{"payloads":[]}', content_type)
    assert (problem.status, problem.code) == (415, "UNSUPPORTED_TYPE")
    assert problem.headers["Accept-Post"].startswith("application/json, ")
    assert "application/x-ndjson" in problem.detail


@given(st.binary(max_size=200), st.sampled_from(["application/json", "application/jsonl"]))
def test_random_bytes_never_crash(data: bytes, content_type: str) -> None:
    """Otherwise some unforeseen bytes would cause a 500."""
    for coding in (None, "gzip", "zstd"):
        try:
            decode(data, content_type, coding, 1000)
        except Problem as problem:
            assert problem.status in {400, 413, 422}  # noqa: PT017 - it may also be fine


# --- content encodings -------------------------------------------------------------------------

TEXT = b'{"payloads":[' + b",".join([b'{"a": "some text"}'] * 500) + b"]}"


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        (None, TEXT), ("", TEXT), ("identity", TEXT), ("gzip", gzipped(TEXT)),
        ("X-GZIP", gzipped(TEXT)), ("identity, gzip", gzipped(TEXT)),
        ("gzip", gzipped(TEXT[:9]) + gzipped(TEXT[9:])),
        ("deflate", zlib.compress(TEXT)), ("Deflate", raw_deflate(TEXT)),
        ("zstd", zstandard.compress(TEXT)), ("Zstd", bare_zstd(TEXT, write_checksum=True)),
        ("zstd", zstandard.compress(TEXT[:9]) + zstandard.compress(TEXT[9:])),
        ("zstd", bare_zstd(TEXT, window_log=23)),
    ],
)  # fmt: skip
def test_all_forms_of_the_content_encodings_are_accepted(coding: str | None, body: bytes) -> None:
    """Otherwise a client that compresses in a way that the RFCs allow would be refused."""
    assert decode(body, "application/json", coding, MIB) == [b'{"a": "some text"}'] * 500


@pytest.mark.parametrize("coding", ["br", "compress", "gzip, gzip", "zstd,gzip", "*", "gzip;q=1"])
def test_other_content_encodings_are_refused(coding: str) -> None:
    """Otherwise a client would not learn the supported encodings."""
    problem = problem_of(TEXT, coding=coding)
    assert (problem.status, problem.code) == (415, "UNSUPPORTED_ENCODING")
    assert problem.headers == {"Accept-Encoding": "gzip, zstd, deflate"}


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", b""), ("zstd", b""), ("gzip", TEXT), ("zstd", TEXT),
        ("gzip", gzipped(TEXT)[:-1]), ("zstd", zstandard.compress(TEXT)[:-1]),
        ("gzip", gzipped(TEXT) + b"rest"), ("zstd", zstandard.compress(TEXT) + b"rest"),
        ("gzip", gzipped(TEXT)[:-8] + bytes(8)), ("gzip", zlib.compress(TEXT)),
        ("deflate", b""), ("deflate", TEXT), ("deflate", zlib.compress(TEXT)[:-1]),
        ("deflate", zlib.compress(TEXT) + b"rest"), ("deflate", zlib.compress(TEXT) * 2),
        ("deflate", gzipped(TEXT)), ("deflate", raw_deflate(TEXT)[:-1]),
        ("gzip", gzipped(TEXT) * 2 + b"\x1f"), ("zstd", zstandard.compress(TEXT) + b"\x28"),
        ("zstd", bare_zstd(TEXT, window_log=24)),
    ],
)  # fmt: skip
def test_broken_compression_is_malformed(coding: str, body: bytes) -> None:
    """Otherwise half of a collection would be accepted as the whole."""
    assert problem_of(body, coding=coding).code == "MALFORMED"


def bombs() -> dict[str, bytes]:
    """Return small bodies that are 64 MiB when decompressed."""
    packer = zlib.compressobj(9, wbits=31)
    gzip_bomb = b"".join(packer.compress(bytes(MIB)) for _ in range(64)) + packer.flush()
    compressor = zstandard.ZstdCompressor().compressobj()
    zstd_bomb = b"".join(compressor.compress(bytes(MIB)) for _ in range(64)) + compressor.flush()
    return {"gzip": gzip_bomb, "zstd": zstd_bomb}


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_decompression_bomb_uses_little_memory(coding: str) -> None:
    """Otherwise one request of a few kilobytes would exhaust the memory of the process."""
    bomb = bombs()[coding]
    tracemalloc.start()
    try:
        problem = problem_of(bomb, coding=coding)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (problem.status, problem.code) == (413, "TOO_LARGE")
    assert peak < 16 * MIB


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_million_empty_members_take_little_time(coding: str) -> None:
    """Otherwise one body of empty members would stop the daemon for a minute."""
    one = gzipped(b"") if coding == "gzip" else zstandard.compress(b"")
    assert problem_of(one * 50_000, coding=coding).code == "MALFORMED"
    assert problem_of(one * 1_000_000, coding=coding, limit=32 * MIB).code == "TOO_LARGE"


@pytest.mark.parametrize(
    ("coding", "pack"), [(None, bytes), ("gzip", gzip.compress), ("zstd", zstandard.compress)]
)
def test_max_length_is_exact(coding: str | None, pack: Callable[[bytes], bytes]) -> None:
    """Otherwise a body of exactly MAX_LENGTH would be refused, or one more byte be accepted."""
    limit = len(TEXT)
    assert len(decode(pack(TEXT), "application/json", coding, limit)) == 500
    problem = problem_of(pack(TEXT + b" "), coding=coding, limit=limit)
    assert (problem.status, problem.code) == (413, "TOO_LARGE")
    assert str(limit) in problem.detail


@pytest.mark.parametrize(
    ("body", "content_type", "coding"),
    [
        (b'{"payloads":["%s"]}' % (b"x" * 600_000), "application/json", None),
        (b'{"payloads":[%s1]}' % (b"1," * 50_000), "application/json", None),
        (b"1\n" * 5000, "application/x-ndjson", None),
        (b"\n" * 5000, "application/x-ndjson", None),
        (gzip.compress(b" " * 100_000), "application/x-ndjson", "gzip"),
        (zstandard.compress(b"1\n" * 5000), "application/x-ndjson", "zstd"),
        (gzip.compress(b"") * 600, "application/x-ndjson", "gzip"),
    ],
    ids=["bytes", "commas", "lines", "blank lines", "unpacked bytes", "unpacked lines", "members"],
)
def test_a_body_that_takes_long_is_not_decoded_in_the_event_loop(
    body: bytes, content_type: str, coding: str | None
) -> None:
    """Otherwise one request would delay all other clients."""
    with pytest.raises(TooMuchWorkError):
        bodies.decode(body, content_type, coding, LIMITS, in_loop=True)
    bodies.decode(body, content_type, coding, LIMITS)


@pytest.mark.parametrize(
    "start",
    [b'{"\\u0061":1,"payloads":[', b'{"a":{"payloads":1},"payloads":[', b'{"version":1,"a":['],
)
def test_a_larger_document_is_parsed_once_in_the_event_loop(start: bytes) -> None:
    """Otherwise a few clients could delay all others: each parse takes milliseconds."""
    for size, too_much in ((1000, False), (200_000, True)):
        document = start + b'"%s"]}' % (b"x" * size)
        with pytest.raises(TooMuchWorkError) if too_much else suppress(Problem):
            bodies.decode(document, "application/json", None, LIMITS, in_loop=True)
