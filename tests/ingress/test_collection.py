"""Payloads in JSON and in NDJSON: accepted byte for byte, and refused with the right code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ingress.decoding import (
    MIB,
    decode,
    from_json,
    from_lines,
    problem_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

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


def test_lines_that_curl_has_joined_are_explained() -> None:
    """`curl -d @file` removes the line breaks; the error would look like broken JSON."""
    problem = problem_of(b'{"a":1}{"a":2}', "application/x-ndjson")
    assert "--data-binary" in problem.detail
    assert "--data-binary" not in problem_of(b"1\n2 3\n", "application/x-ndjson").detail
    assert "--data-binary" in problem_of(b'{"a":1}{"a":2}').detail
    assert "--data-binary" in problem_of(b"[1]\n[2]\n").detail


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
