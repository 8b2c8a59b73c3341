"""Find the address of a client behind proxies (TRUSTED_PROXIES, CLIENT_ADDRESS). No I/O.

A proxy appends the address of its own peer to a header. Only the entries of trusted proxies can be
believed, so the header is read from its end: the first address that is not a trusted proxy's is the
client's. Anything in front of it may have been written by the client.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from payloadd.config.parsers import TrustedPeers

_NODE: Final = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<v4>[0-9.]+))(?::[0-9]{1,5})?")
"""An address with or without a port (RFC 7239, section 6)."""
_FORWARDED_FOR: Final = re.compile(
    r"""(?:^|;)[ \t]*for=(?:"(?P<quoted>[^"\\]*)"|(?P<token>[^;,"\s]+))""", re.IGNORECASE
)
_LONGEST: Final = 4096
"""Characters of the header that are read, from its end: the entries that are whole in them."""

Mode = Literal["x-forwarded-for", "forwarded"]


def client_address(peer: str, header: str | None, mode: Mode, trusted: TrustedPeers) -> str:
    """Return the address of the client of a request.

    ``peer`` is the address of the other end of the connection, ``unix`` for a Unix socket, and
    ``header`` the value of X-Forwarded-For or Forwarded, several lines joined by commas. The last
    address that a trusted peer has vouched for is returned: an entry that is no address ends the
    search.
    """
    address = peer
    header = header or ""
    entries = header[-_LONGEST:].split(",")
    if len(header) > _LONGEST:
        # The end of an address can be another address: 10.198.51.100 ends in 198.51.100.
        del entries[0]
    while entries and address in trusted:
        stated = _address_in(entries.pop(), mode)
        if stated is None:
            break
        address = stated
    return address


def _address_in(entry: str, mode: Mode) -> str | None:
    """Return the address in one entry of the header; None if it has none."""
    text = entry.strip()
    if mode == "forwarded":
        found = _FORWARDED_FOR.search(text)
        if found is None:
            return None
        text = found["quoted"] if found["token"] is None else found["token"]
    try:
        return without_mapping(text)
    except ValueError:
        pass
    node = _NODE.fullmatch(text)
    if node is None:
        return None
    try:
        return without_mapping(node["v6"] or node["v4"])
    except ValueError:
        return None


def without_mapping(text: str) -> str:
    """Return an IP address as text, an IPv4-mapped one (RFC 4291, section 2.5.5.2) as IPv4.

    Sockets for both protocols and some proxies state IPv4 addresses so: one client would have two
    addresses. Raises ValueError for a text that is no address.
    """
    address = ip_address(text)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(address)
