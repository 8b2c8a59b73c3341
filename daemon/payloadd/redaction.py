"""Hide user names and passwords of URLs in texts for people: pure.

A password may contain an unencoded ``/``, ``?``, ``#`` or ``@``. Parsers of URLs then disagree
about where it ends, so everything before the last ``@`` is hidden.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

_HIDDEN: Final = "***"
# Only known schemes stay visible: in `user:password@host` the user looks like a scheme.
_VALUE: Final = re.compile(
    r"(?is)\A((?:https?|s3|file|unix|ftp|socks[45][ah]?|postgres(?:ql)?):)?(/*).*@"
)
_IN_SENTENCE: Final = re.compile(r"//\S*@")


def hide_userinfo(value: str) -> str:
    """Return ``value``, a setting or another text that may be a URL, without user and password."""
    return _VALUE.sub(rf"\g<1>\g<2>{_HIDDEN}@", value)


def hide_userinfo_in_sentence(text: str) -> str:
    """Return a text, such as an error of a library, without user and password of URLs in it.

    A password with white space in it is not found: no library shows one unencoded.
    """
    return _IN_SENTENCE.sub(f"//{_HIDDEN}@", text)


def hide_secrets(text: str, secrets: tuple[str, ...]) -> str:
    """Return ``text`` with each secret hidden, plain or percent-encoded."""
    for secret in secrets:
        text = text.replace(secret, _HIDDEN).replace(quote(secret, safe=""), _HIDDEN)
    return text
