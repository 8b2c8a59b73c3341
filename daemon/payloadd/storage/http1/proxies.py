"""The proxy variables of the environment: which hosts are reached through which proxy.

``NO_PROXY`` has no standard. Here every form is understood that curl, Go, Python or ``requests``
document: ``*``, a name (which includes its subdomains, with or without a leading ``.`` or ``*.``),
an address, a network (``10.0.0.0/8``, ``fd00::/8``), brackets around IPv6, and a port behind each
of them. Names are separated by commas or spaces.

A ``/`` in a password of a proxy's URL ends its authority (RFC 3986, section 3.2): libraries take
the beginning of the password for a port, and repeat it in their error messages. So URLs are checked
here before a library reads them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Final
from urllib.request import getproxies_environment

from payloadd.errors import SettingsError
from payloadd.redaction import hide_userinfo

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

_NAMES: Final = ("http", "https", "all")
_USERINFO: Final = re.compile(r"[^/?#\s\x00-\x1f\x7f]*")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_EXEMPTION: Final = re.compile(
    r"(?:(?P<scheme>[a-z][a-z0-9+.-]*)://)?"
    r"(?:\[(?P<v6>[^\]/]*)(?P<v6bits>/\d+)?\](?P<bits>/\d+)?|(?P<host>[^\[\]]*?))(?::(?P<port>\d+))?/?"
)
_PORTS: Final = {"http": 80, "https": 443}


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


@dataclass(frozen=True, slots=True)
class Exemption:
    """One entry of NO_PROXY: hosts that are reached without a proxy."""

    network: IPv4Network | IPv6Network | None
    name: str
    """A name in lower case without dots at its ends, "" for every host; used without a network."""
    port: int | None
    scheme: str | None

    def covers(self, scheme: str, host: str, port: int) -> bool:
        """Return whether a host, in lower case and without brackets, is one of these."""
        if self.port not in {None, port} or self.scheme not in {None, "all", scheme}:
            return False
        if self.network is not None:
            address = _address(host)
            return address is not None and address in self.network
        return self.name in {"", host} or host.endswith(f".{self.name}")


class Proxies:
    """The proxies of the environment, and the hosts that are reached without."""

    def __init__(self, by_scheme: Mapping[str, str], no_proxy: str) -> None:
        """Ignore entries of ``no_proxy`` that are neither a host nor a network."""
        self._by_scheme = {
            name: url if "://" in url else f"http://{url}" for name, url in by_scheme.items()
        }
        self._exemptions = parse_no_proxy(no_proxy)

    @classmethod
    def from_environment(cls) -> Proxies:
        """Return the proxies of the environment; raises SettingsError as above."""
        return cls(proxies_from_environment(), getproxies_environment().get("no", ""))

    def urls(self) -> set[str]:
        """Return the URLs of all proxies."""
        return set(self._by_scheme.values())

    def proxy_of(self, url: httpx.URL) -> str | None:
        """Return the URL of the proxy for requests to ``url``, None for a direct connection."""
        proxy = self._by_scheme.get(url.scheme) or self._by_scheme.get("all")
        if proxy is None:
            return None
        host = url.host.lower().rstrip(".")
        port = url.port or _PORTS.get(url.scheme, 0)
        if any(one.covers(url.scheme, host, port) for one in self._exemptions):
            return None
        return proxy


def parse_no_proxy(text: str) -> list[Exemption]:
    """Return the entries of NO_PROXY; those that are no host and no network are left out."""
    entries = (_exemption(entry) for entry in re.split(r"[,\s]+", text.lower()) if entry)
    return [entry for entry in entries if entry is not None]


def _exemption(text: str) -> Exemption | None:
    if (network := _network(text)) is not None:  # an address, IPv6 without brackets too
        return Exemption(network, "", None, None)
    match = _EXEMPTION.fullmatch(text)
    if match is None:
        return None
    port = int(match["port"]) if match["port"] else None
    if match["v6"] is not None:
        network = _network(match["v6"] + (match["v6bits"] or match["bits"] or ""))
        return None if network is None else Exemption(network, "", port, match["scheme"])
    host = match["host"]
    if (network := _network(host)) is not None:
        return Exemption(network, "", port, match["scheme"])
    if host == "*":
        return Exemption(None, "", port, match["scheme"])
    name = host.removeprefix("*").strip(".")
    return Exemption(None, name, port, match["scheme"]) if name else None


def _network(text: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(text.partition("%")[0], strict=False)
    except ValueError:
        return None


def _address(host: str) -> IPv4Address | IPv6Address | None:
    """Return the address that a host is, None for a name; IPv4 in IPv6 counts as IPv4."""
    try:
        found = ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _userinfo(url: str) -> str:
    """Return the part of a URL before its last ``@``, without the scheme."""
    return _SCHEME.sub("", url, count=1).rpartition("@")[0]
