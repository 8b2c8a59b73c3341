"""The proxy variables of the environment, checked before a library reads them.

A ``/`` in a password ends the authority of a URL (RFC 3986, section 3.2): libraries take the
beginning of the password for a port, and repeat it in their error messages.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.request import getproxies_environment

from payloadd.errors import SettingsError
from payloadd.redaction import hide_userinfo

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAMES: Final = ("http", "https", "all")
_USERINFO: Final = re.compile(r"[^/?#\s\x00-\x1f\x7f]*")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def proxies_from_environment() -> Mapping[str, str]:
    """Return the URLs of the proxies by scheme (``http``, ``https``, ``all``).

    Raises SettingsError for a URL whose user or password is not percent-encoded.
    """
    found = getproxies_environment()
    proxies = {name: found[name] for name in _NAMES if found.get(name)}
    problems = [
        f"{name.upper()}_PROXY: {hide_userinfo(url)!r} is not allowed; allowed is"
        " http://[user:password@]host[:port], with / ? # and spaces in user and password"
        " percent-encoded"
        for name, url in proxies.items()
        if not _USERINFO.fullmatch(_userinfo(url))
    ]
    if problems:
        raise SettingsError(problems)
    return proxies


def _userinfo(url: str) -> str:
    """Return the part of a URL before its last ``@``, without the scheme."""
    return _SCHEME.sub("", url, count=1).rpartition("@")[0]
