"""How files become collections: lines and elements, borders, and content that cannot be cut."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from payloadd.cli.sending import cutting
from payloadd.cli.sending.cutting import JSON, NDJSON, Collection, CutError, collections


class _SmallReads:
    """A file of which each read returns only some bytes, as a pipe does."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self._file = io.BytesIO(data)
        self._sizes = sizes

    def read(self, size: int, /) -> bytes:
        """Return the next bytes: as many as the next of the sizes."""
        self._sizes.append(self._sizes.pop(0))
        return self._file.read(min(size, self._sizes[-1]))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make collections of 40 bytes and three payloads at most, payloads of 200 bytes."""
    monkeypatch.setattr(cutting, "MOST_BYTES", 40)
    monkeypatch.setattr(cutting, "MOST_PAYLOADS", 3)
    monkeypatch.setattr(cutting, "LONGEST_PAYLOAD", 200)


def cut(data: bytes, first: int = 1) -> list[Collection]:
    """Return the collections of a file with this content."""
    return list(collections(io.BytesIO(data), first))


@pytest.mark.usefixtures("small")
def test_lines_keep_their_bytes_and_their_numbers() -> None:
    """A line is sent as it is, and the numbers count every line."""
    data = b'{"a": 1}\n\n[2]\r\n' + b"3" * 50 + b"\n4\n5\n6\n7"
    found = cut(data)
    assert b"".join(one.body for one in found) == data + b"\n"
    assert [(one.first, one.end, one.media_type) for one in found] == [
        (1, 4, NDJSON),
        (4, 5, NDJSON),
        (5, 8, NDJSON),
        (8, 9, NDJSON),
    ]


@pytest.mark.parametrize("data", [b"", b"\n", b"\xef\xbb\xbf", b"[]", b" [ ] \n"])
def test_nothing_to_send_has_no_payload(data: bytes) -> None:
    """Empty files and empty arrays are no error."""
    lines = b"".join(b"".join(one.payloads) for one in cut(data))
    assert lines.strip(b"\xef\xbb\xbf\n") == b""


def test_a_file_whose_first_line_is_an_array_and_that_has_more_lines_is_ndjson() -> None:
    """NDJSON may have arrays as payloads."""
    assert [one.media_type for one in cut(b"[1,2]\n[3,4]\n")] == [NDJSON]
    assert [one.media_type for one in cut(b"[1,2]\n\n \n")] == [JSON]
    assert [one.media_type for one in cut(b"[1,\n2]\n")] == [JSON]


@pytest.mark.usefixtures("small")
def test_elements_of_an_array_are_cut_as_they_are_written() -> None:
    """Brackets and commas in strings and in nested values separate nothing."""
    data = rb'  [ {"a":[1,2,{"b":"],["}]}, "\"]," , 3,' + b'[\n4 ], "' + b"5" * 60 + b'"\n] \n'
    found = cut(data)
    assert [one.payloads for one in found] == [
        [b'{"a":[1,2,{"b":"],["}]}', rb'"\"],"', b"3"],
        [b"[\n4 ]"],
        [b'"' + b"5" * 60 + b'"'],
    ]
    assert [one.first for one in found] == [1, 4, 5]
    assert found[0].body == rb'[{"a":[1,2,{"b":"],["}]},"\"],",3]'


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[1, 2", "the array ends within its element 2"),
        (b'[1, "]', "the array ends within its element 2"),
        (b"[1] 2", "there is text behind the array"),
        (b"[1]" + b" " * 100 + b"x", "there is text behind the array"),
        (b"[" + b"1" * 1000, "element 1 of the array is longer than 0 MiB"),
        (b"1\n" + b"2" * 1000, "line 2 is longer than 0 MiB"),
    ],
)
def test_content_that_cannot_be_cut_is_named(data: bytes, reason: str) -> None:
    """The message names the place."""
    with pytest.raises(CutError) as raised:
        cut(data)
    assert str(raised.value) == reason


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("data", [b"1\n22\n333\n4444\n5\n6\n7\n", b"[1,22,333,4444,5,6,7]"])
def test_a_run_that_goes_on_has_the_borders_of_the_first_run(data: bytes) -> None:
    """Other borders would have other keys, and store payloads twice."""
    whole = cut(data)
    assert [one.first for one in whole] == [1, 4, 7]
    assert cut(data, 4) == whole[1:]
    (part, *rest) = cut(data, 5)
    assert (part.first, part.payloads, rest) == (5, whole[1].payloads[1:], whole[2:])
    assert cut(data, 8) == []


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.usefixtures("small")
@given(
    values=st.lists(_VALUES, max_size=12),
    sizes=st.lists(st.integers(1, 60), min_size=1),
    indent=st.none() | st.just(1),
    array=st.booleans(),
)
def test_payloads_and_borders_do_not_depend_on_the_reads(
    values: list[object], sizes: list[int], indent: int | None, *, array: bool
) -> None:
    """A pipe returns the bytes in other pieces than a file."""
    if array:
        data = json.dumps(values, indent=indent).encode()
    else:
        data = b"".join(json.dumps(value).encode() + b"\n" for value in values)
        # A single line that holds an array is the array; a long first line is not looked through.
        assume(data[:1] != b"[" or (len(values) > 1 and data.find(b"\n") < 40))
    try:
        found = cut(data)
    except CutError as error:
        assert "longer" in str(error)  # noqa: PT017
        return
    assert list(collections(_SmallReads(data, list(sizes)))) == found
    payloads = [json.loads(payload) for one in found for payload in one.payloads if payload]
    assert payloads == values
    for one in found:
        assert len(one.payloads) <= 3
        assert len(one.payloads) == 1 or sum(map(len, one.payloads)) <= 40


def test_keys_follow_from_name_place_and_content() -> None:
    """A changed file is not taken for the old one, nor one file for another."""
    one = Collection(5, [b"1", b"2"], NDJSON)
    assert one.key("/a") == Collection(5, [b"1", b"2"], NDJSON).key("/a")
    others = [
        one.key("/b"),
        Collection(6, [b"1", b"2"], NDJSON).key("/a"),
        Collection(5, [b"1", b"3"], NDJSON).key("/a"),
        Collection(5, [b"1", b"2"], JSON).key("/a"),
    ]
    assert len({one.key("/a"), *others}) == 5
    assert len(one.key("/a")) <= 255
    assert one.key("/\udcff").isascii()
