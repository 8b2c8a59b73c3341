r"""Escape characters that change how a line is shown: pure.

Text from outside (a header, an error of a server, a file name) ends up in log lines, in bodies of
error answers and on terminals. Terminal escapes, C1 controls and line separators could forge lines
or move the cursor. Bidirectional controls could change the order in which the text is shown
(Unicode technical report 36, section 3; CVE-2021-42574). Such characters are shown as ``\u009b``.
Letters, marks and emoji of any script stay unchanged, and so do the joiners U+200C and U+200D,
which several scripts and emoji need, and visible format characters.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_INVISIBLE: Final = (
    "\u007f-\u009f"  # DEL and the C1 controls
    "\u00ad"  # soft hyphen
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional controls
    "\u180e\u200b\u2060-\u2065\u206a-\u206f\ufeff"  # separators and operators without a glyph
    "\u2028\u2029"  # line and paragraph separators
    "\u3164\uffa0"  # Hangul letters without a glyph
    "\ud800-\udfff"  # surrogates: bytes of a file name that are not UTF-8
    "\ufff9-\ufffb"  # interlinear annotations
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"  # shorthand and musical format controls
    "\U000e0000-\U000e007f"  # tags: a second, invisible ASCII
)
_ALL: Final = re.compile(f"[\\x00-\\x1f{_INVISIBLE}]")
_ALL_BUT_LINES: Final = re.compile(f"[\\x00-\\x08\\x0b-\\x1f{_INVISIBLE}]")
_IN_JSON: Final = re.compile(f"[{_INVISIBLE}]")
_BASIC_PLANE: Final = 0xFFFF


def escape_controls(text: str) -> str:
    """Return ``text`` as one line, every control and invisible character escaped."""
    return _substitute(_ALL, _escape, text)


def escape_controls_in_lines(text: str) -> str:
    """Return ``text`` escaped in the same way, except for line feeds and tabs."""
    return _substitute(_ALL_BUT_LINES, _escape, text)


def escape_controls_in_json(document: bytes) -> bytes:
    """Return a JSON document of the same value, with such characters as escapes of JSON.

    They can occur in strings only; controls below U+0020 cannot occur (RFC 8259, section 7).
    """
    text = document.decode(errors="surrogateescape")
    return _substitute(_IN_JSON, _escape_utf16, text).encode()


def _substitute(pattern: re.Pattern[str], escape: Callable[[re.Match[str]], str], text: str) -> str:
    # Most text has no such character, and a substitution inspects every character.
    return text if text.isascii() and text.isprintable() else pattern.sub(escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\u{code:04x}" if code <= _BASIC_PLANE else f"\\U{code:08x}"


def _escape_utf16(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[start : start + 2].hex()}" for start in range(0, len(units), 2))
