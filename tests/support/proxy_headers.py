"""Headers of the PROXY protocol, as proxies send them."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

UNSPEC: Final = 0x00
IPV4: Final = 0x11
IPV6: Final = 0x21
UNIX: Final = 0x31
LOCAL: Final = 0
PROXY: Final = 1


def line(source: str) -> bytes:
    """Return a header of version 1 for a client with the address ``source``."""
    four = ip_address(source).version == 4
    kind, destination = ("TCP4", "198.51.100.1") if four else ("TCP6", "2001:db8::2")
    return f"PROXY {kind} {source} {destination} 56324 443\r\n".encode()


def binary(
    family: int, source: str = "", *, command: int = PROXY, version: int = 2, fields: bytes = b""
) -> bytes:
    """Return a header of version 2; ``family`` is its byte, and ``fields`` what follows."""
    packed = ip_address(source).packed if source else b""
    addresses = packed + packed + b"\xdc\x04\x01\xbb" if packed else b""
    if family == UNIX:
        addresses = bytes(216)
    rest = addresses + fields
    head = bytes((version << 4 | command, family)) + len(rest).to_bytes(2)
    return b"\r\n\r\n\0\r\nQUIT\n" + head + rest
