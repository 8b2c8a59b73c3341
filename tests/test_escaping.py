"""Characters from outside that could change how a line is shown."""

from __future__ import annotations

import json
import sys
import unicodedata

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.escaping import escape_controls, escape_controls_in_json, escape_controls_in_lines

INVISIBLE = {"Cc", "Cf", "Zl", "Zp", "Cs"}
# Format characters that have a glyph: signs before Arabic, Syriac and Kaithi numbers, and the
# joiners of Egyptian hieroglyphs.
VISIBLE = {
    *map(chr, (*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD)),
    *map(chr, range(0x13430, 0x13440)),
}
JOINERS = {"\u200c", "\u200d"}


@pytest.mark.no_cover
def test_every_invisible_character_is_escaped() -> None:
    """Otherwise the forgotten one could change how a line is shown."""
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        invisible = unicodedata.category(char) in INVISIBLE and char not in VISIBLE | JOINERS
        fillers = char in "\u2065\u3164\uffa0" or 0xE0000 <= code <= 0xE007F
        assert (escape_controls(char) != char) == (invisible or fillers), hex(code)


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "Zürich, naïve, Ελλάδα, Москва, 日本語, עברית, العربية",
        "👩‍👩‍👧 🏳️‍🌈 ❤️ 🇩🇪",
        "می‌خواهم",  # ZWNJ, without which it is another word
        "क्‍ष",  # ZWJ
        "葛\U000e0100",  # a variation selector: one of two ways to write a name
        "e\u0301",
        "",
    ],
)
def test_text_of_any_script_is_unchanged(text: str) -> None:
    """Otherwise names and file names of most of the world would be unreadable."""
    assert escape_controls(text) == text
    assert escape_controls_in_json(text.encode()).decode() == text


def test_escapes_contain_the_code_point() -> None:
    """Otherwise an operator could not look the character up."""
    text = "a\x1b[2J\x9b\u202eb\r\n\t\U000e0041\udcff"
    assert escape_controls(text) == (r"a\u001b[2J\u009b\u202eb\u000d\u000a\u0009\U000e0041\udcff")
    assert escape_controls_in_lines("a\r\n\tb\u2028") == "a\\u000d\n\tb\\u2028"


@given(st.text())
def test_the_result_is_one_line_without_controls(text: str) -> None:
    """Otherwise a header could forge a line of the log."""
    escaped = escape_controls(text)
    assert len(escaped.splitlines()) <= 1
    assert not {unicodedata.category(char) for char in escaped} & {"Cc", "Zl", "Zp", "Cs"}
    assert escape_controls(escaped) == escaped


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.no_cover
@given(json_values)
def test_an_escaped_json_document_has_the_same_value(value: object) -> None:
    """Otherwise a client would read another detail than the daemon wrote."""
    document = msgspec.json.encode(value)
    escaped = escape_controls_in_json(document)
    assert json.loads(escaped) == value
    found = {unicodedata.category(char) for char in escaped.decode()}
    assert not found & {"Cc", "Zl", "Zp"}


def test_bytes_that_are_not_utf8_are_escaped() -> None:
    """Otherwise an operator could not inspect a damaged payload."""
    assert escape_controls_in_json(b'"\xff\x9b"') == rb'"\udcff\udc9b"'
