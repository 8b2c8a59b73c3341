"""Read the header of the PROXY protocol, versions 1 and 2, in front of a connection.

A proxy sends it before the first byte of its client (CLIENT_ADDRESS=proxy). Source: "The PROXY
protocol", HAProxy's doc/proxy-protocol.txt, sections 2.1 and 2.2.

Only the address of the client is used: its port, the destination and all further fields (TLVs) are
skipped. Where the header states no address (LOCAL, UNKNOWN, UNSPEC) the connection is the proxy's
own, such as a health check.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final, NamedTuple

from trio.socket import MSG_PEEK

if TYPE_CHECKING:
    from trio.socket import SocketType

LONGEST: Final = 4096
"""Bytes of a header of version 2 at most, with its fields; the longest address takes 232."""
_LONGEST_LINE: Final = 107
"""Bytes of a header of version 1 at most, its line end included."""
_BEGINNING: Final = b"PROXY "
_SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
_FIXED: Final = 16
"""Bytes of a header of version 2 in front of its addresses."""
_PORT: Final = r"(?:0|[1-9][0-9]{0,4})"
_LINE: Final = re.compile(
    rf"PROXY (?:UNKNOWN(?: [^\r\n]*)?|(TCP[46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) {_PORT} {_PORT})"
)
_LOCAL, _PROXY = 0, 1
_UNSPEC, _INET, _INET6, _UNIX = range(4)
_ADDRESS_BYTES: Final = {_UNSPEC: 0, _INET: 12, _INET6: 36, _UNIX: 216}
_MOST_PROTOCOL: Final = 2


class ProxyHeaderError(Exception):
    """The connection does not begin with a valid header; the message says why."""


class ProxyHeader(NamedTuple):
    """A complete header."""

    size: int
    """Its bytes; the bytes behind it are the client's."""
    address: str | None
    """The address of the client, ``unix`` for a Unix socket; None: the proxy's own connection."""


class ProxyHeaderReader:
    """Reads the header of one connection."""

    def __init__(self) -> None:
        self._data = b""

    def received(self) -> int:
        """Return how many bytes of an incomplete header have arrived."""
        return len(self._data)

    async def read(self, socket: SocketType) -> ProxyHeader | None:
        """Read the header and nothing behind it.

        Returns None if the proxy ends the connection before its first byte, as the check of a port
        does. Raises ProxyHeaderError, or OSError if the connection is lost.
        """
        while True:
            more = await socket.recv(LONGEST, MSG_PEEK)
            if not more:
                if self._data:
                    raise ProxyHeaderError("the connection ended within the PROXY header")
                return None
            header = parse(self._data + more)
            mine = len(more) if header is None else header.size - len(self._data)
            # An incomplete header is taken out of the socket, which is readable otherwise.
            self._data += await socket.recv(mine)
            if header is not None:
                return header


def parse(data: bytes) -> ProxyHeader | None:
    """Return the header at the beginning of ``data``, None if it is incomplete.

    Raises ProxyHeaderError.
    """
    if data[: len(_BEGINNING)] == _BEGINNING[: len(data)]:
        return _parse_line(data)
    if data[: len(_SIGNATURE)] == _SIGNATURE[: len(data)]:
        return _parse_binary(data)
    raise ProxyHeaderError("the connection does not begin with a PROXY header")


def _parse_line(data: bytes) -> ProxyHeader | None:
    """Parse a header of version 1 (section 2.1)."""
    line, end, _ = data[:_LONGEST_LINE].partition(b"\r\n")
    if not end:
        if len(data) >= _LONGEST_LINE:
            raise ProxyHeaderError(f"the PROXY header has more than {_LONGEST_LINE} bytes")
        return None
    found = _LINE.fullmatch(line.decode("latin-1"))
    if found is None:
        raise ProxyHeaderError("the PROXY header is malformed")
    kind, source, destination = found.groups()
    if kind is None:
        return ProxyHeader(len(line) + len(end), None)
    family = IPv4Address if kind == "TCP4" else IPv6Address
    try:
        family(destination)
        address = str(family(source))
    except ValueError:
        raise ProxyHeaderError(f"the PROXY header has no two addresses for {kind}") from None
    return ProxyHeader(len(line) + len(end), address)


def _parse_binary(data: bytes) -> ProxyHeader | None:
    """Parse a header of version 2 (section 2.2)."""
    if len(data) < _FIXED:
        return None
    version, command = divmod(data[12], 16)
    family, protocol = divmod(data[13], 16)
    length = int.from_bytes(data[14:_FIXED])
    size = _FIXED + length
    if version != 2:  # noqa: PLR2004 - "the receiver must only accept this value"
        raise ProxyHeaderError(f"the PROXY header has version {version}; 1 and 2 are known")
    if command not in {_LOCAL, _PROXY}:
        raise ProxyHeaderError(f"the PROXY header has the unknown command {command}")
    if size > LONGEST:
        raise ProxyHeaderError(f"the PROXY header has {size} bytes; at most {LONGEST} are read")
    if command == _PROXY:
        if family not in _ADDRESS_BYTES or protocol > _MOST_PROTOCOL:
            raise ProxyHeaderError(f"the PROXY header has the unknown family {data[13]:#04x}")
        if length < _ADDRESS_BYTES[family]:
            raise ProxyHeaderError("the PROXY header is too short for its addresses")
    if len(data) < size:
        return None
    if command == _LOCAL or protocol == _UNSPEC:
        return ProxyHeader(size, None)
    return ProxyHeader(size, _binary_address(family, data[_FIXED:size]))


def _binary_address(family: int, addresses: bytes) -> str | None:
    """Return the source address of a header of version 2."""
    if family == _INET:
        return str(IPv4Address(addresses[:4]))
    if family == _INET6:
        return str(IPv6Address(addresses[:16]))
    return "unix" if family == _UNIX else None
