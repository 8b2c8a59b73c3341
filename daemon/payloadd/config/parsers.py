"""Types of settings, and the parsers that read them from text.

Every parser raises ValueError; the message names the allowed values.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from payloadd.config.credential_files import PEM_BEGIN
from payloadd.config.reasons import (
    ACCESS_POINT,
    LARGEST_PORT,
    is_host,
    is_unicode,
    why_no_address,
    why_no_endpoint,
    why_no_store,
)

if TYPE_CHECKING:
    from collections.abc import Callable

_SIZE_UNITS: Final[dict[str, int]] = {"": 1, "b": 1} | {
    unit: base**power
    for power, letter in enumerate("kmgt", start=1)
    for unit, base in (
        (f"{letter}b", 1000),
        (f"{letter}ib", 1024),
        (f"{letter}i", 1024),
        (letter, 1024),
    )
}
"""Bytes by the unit in lower case. A letter alone counts in 1024, as in systemd and nginx."""
_SIZE_NAMES: Final = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B"))
_DURATION_UNITS: Final = {
    name: seconds
    for names, seconds in (
        ("ms msec millisecond milliseconds", 0.001),
        ("s sec secs second seconds", 1.0),
        ("m min mins minute minutes", 60.0),
        ("h hr hrs hour hours", 3600.0),
        ("d day days", 86400.0),
    )
    for name in names.split()
}
"""Seconds by the unit in lower case."""
_NUMBER: Final = r"[0-9]{1,12}(?:\.[0-9]{1,6})?"
_DURATION_PART: Final = re.compile(rf"({_NUMBER})\s?([a-z]+)\s?")


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host (name, IPv4 or IPv6 without brackets) and a port; port 0 lets the kernel choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The path of a Unix socket."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


@dataclass(frozen=True, slots=True)
class Rate:
    """Requests per second, and how many may come at once."""

    per_second: float
    burst: int
    text: str
    """The value as it was written."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class TrustedPeers:
    """Peers whose statement about the address of a client is used."""

    networks: tuple[IPv4Network | IPv6Network, ...]
    unix: bool
    """Whether the peers on Unix sockets are trusted."""

    def __contains__(self, peer: object) -> bool:
        """Return whether a peer, the text of an IP address or ``unix``, is trusted."""
        if not isinstance(peer, str) or peer == "unix":
            return self.unix and peer == "unix"
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self.networks)


@dataclass(frozen=True, slots=True)
class FileUrl:
    """A folder for objects."""

    path: Path


@dataclass(frozen=True, slots=True)
class S3Url:
    """A bucket, and a prefix without slashes at its ends ("" for none).

    ``bucket`` may be the ARN of an access point, as in AWS's tools.
    """

    bucket: str
    prefix: str


def whole(least: int, most: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from ``least`` to ``most``."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not least <= int(text) <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return int(text)

    return parse


def price(text: str) -> float:
    """Parse an amount of dollars, 0 or more."""
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,12})?", text):
        raise ValueError("dollars as a decimal number, such as 0.000005")
    return float(text)


def size(least: int, most: int) -> Callable[[str], int]:
    """Return a parser of sizes in bytes, written ``512KiB``, ``10MB``, ``1.5G``, ``4096``.

    ``10M`` is 10 MiB, ``10MB`` are 10,000,000 bytes. Capital letters mean the same.
    """

    def parse(text: str) -> int:
        match = re.fullmatch(rf"({_NUMBER})\s?([a-z]*)", text.lower())
        if match and match[2] in _SIZE_UNITS:
            value = round(float(match[1]) * _SIZE_UNITS[match[2]])
            if least <= value <= most:
                return value
        raise ValueError(
            f"a size from {size_text(least)} to {size_text(most)}, in bytes or with one of the"
            " units kB, MB, GB (powers of 1000), KiB, MiB, GiB, K, M and G (powers of 1024)"
        )

    return parse


def size_text(value: int) -> str:
    """Return a size in the largest unit of which it is a whole number."""
    unit, name = next((unit, name) for unit, name in _SIZE_NAMES if value % unit == 0)
    return f"{value // unit}{name}"


def duration(least: float, most: float) -> Callable[[str], float]:
    """Return a parser of durations in seconds, written ``500ms``, ``30s``, ``1m30s``, ``30``.

    A number without a unit is seconds.
    """

    def parse(text: str) -> float:
        value = _seconds(text.lower())
        if value is not None and least <= value <= most:
            return value
        raise ValueError(
            f"a duration from {least:g}s to {most:g}s, in ms, s, m or h (30s, 1m30s);"
            " a number alone is seconds"
        )

    return parse


def _seconds(text: str) -> float | None:
    """Return the seconds of a duration in lower case, None if it is none."""
    if re.fullmatch(_NUMBER, text):
        return float(text)
    parts = _DURATION_PART.findall(text)
    if (
        not parts
        or _DURATION_PART.sub("", text)
        or any(one not in _DURATION_UNITS for _, one in parts)
    ):
        return None
    return sum(float(number) * _DURATION_UNITS[unit] for number, unit in parts)


def one_of(*allowed: str, **others: str) -> Callable[[str], str]:
    """Return a parser that accepts only the words ``allowed``, in any case.

    ``others`` are words that are accepted too, each with the word that it stands for.
    """
    known = {word.lower(): word for word in allowed} | others

    def parse(text: str) -> str:
        word = known.get(text.lower())
        if word is None:
            raise ValueError("one of " + ", ".join(allowed))
        return word

    return parse


def truth(text: str) -> bool:
    """Parse ``true`` or ``false`` in any case, as AWS's tools write them."""
    if text.lower() not in {"true", "false"}:
        raise ValueError("one of true, false")
    return text.lower() == "true"


def pem_file(text: str) -> Path:
    """Parse the path of a PEM file, or its content; return a path.

    Content is put into a file in memory (memfd_create(2)) that lives as long as the process:
    OpenSSL reads keys from files only, and a private key must not be written to a disk.
    """
    if PEM_BEGIN not in text:
        return Path(text)
    descriptor = os.memfd_create("pem")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(text.encode("utf-8", "surrogateescape"))
    return Path(f"/proc/self/fd/{descriptor}")


def address(text: str) -> Address:
    """Parse ``host:port``, ``[v6]:port`` or ``unix:/path``."""
    if text.startswith("unix:/"):
        return UnixAddress(text.removeprefix("unix:"))
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:*\[\]/@]+)):([0-9]{1,5})", text)
    if not match or int(match[3]) > LARGEST_PORT or not is_host(match[1], match[2]):
        raise ValueError(
            "host:port, [v6]:port or unix:/path (port 0 to 65535); " + why_no_address(text)
        )
    return TcpAddress(match[1] or match[2], int(match[3]))


def addresses(text: str) -> tuple[Address, ...]:
    """Parse addresses, separated by commas."""
    return tuple(address(part.strip()) for part in text.split(","))


def address_or_off(text: str) -> Address | None:
    """Parse an address; returns None for ``off``."""
    if text.lower() == "off":
        return None
    try:
        return address(text)
    except ValueError as error:
        raise ValueError(f"off, or {error}") from None


def store_url(text: str) -> FileUrl | S3Url:
    """Parse ``s3://bucket[/prefix]`` or ``file:///path``."""
    scheme, mark, rest = text.partition("://")
    kind = scheme.lower() + mark
    if kind == "file://" and re.fullmatch(r"(?:(?!%00)[^\0])+", rest):
        path = unquote(rest)
        # Refuse file://user:password@host/path: it names another machine.
        if path.startswith(("/", ".")) or not re.search("[:@]", path):
            return FileUrl(Path(path))
    if kind == "s3://":
        match = re.fullmatch(rf"({ACCESS_POINT}|[^/]*)((?:/.*)?)", rest)
        if match and why_no_store(kind, match[1], match[2]) is None:
            return S3Url(match[1], match[2].strip("/"))
    bucket, _, prefix = rest.partition("/")
    raise ValueError(f"s3://bucket[/prefix] or file:///path; {why_no_store(kind, bucket, prefix)}")


def endpoint_url(text: str) -> str:
    """Parse an http(s) URL without credentials, query or fragment."""
    reason = why_no_endpoint(text)
    if reason is not None:
        raise ValueError(
            "http://host[:port] or https://host[:port], without user, query, fragment; " + reason
        )
    return text.rstrip("/")


def region(text: str) -> str:
    """Parse the name of a region of AWS or of another S3 service."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,63}", text):
        raise ValueError("a region's name: letters, digits, - and _")
    return text


def words(text: str) -> str:
    """Parse any UTF-8 text that is not blank."""
    if not is_unicode(text):
        raise ValueError("a text in UTF-8")
    if not text.strip():
        raise ValueError("a text that is not empty")
    return text


def rate(text: str) -> Rate:
    """Parse ``100/s``, ``6000/min`` or ``100/s burst 500``. Without a burst it is one second's."""
    found = re.fullmatch(r"([0-9]{1,9})\s?/\s?([a-z]+)(?:,? burst ([0-9]{1,9}))?", text.lower())
    known = found is not None and found[2] in _DURATION_UNITS
    if found is None or not known or not int(found[1]) or found[3] == "0":
        raise ValueError("a number of requests, such as 100/s or 100/s burst 500")
    per_second = int(found[1]) / _DURATION_UNITS[found[2]]
    return Rate(per_second, int(found[3] or max(1, int(per_second))), text)


def trusted_peers(text: str) -> TrustedPeers:
    """Parse a comma list of IP addresses, networks, and ``unix``."""
    networks = []
    unix = False
    for item in (part.strip() for part in text.split(",")):
        if item == "unix":
            unix = True
            continue
        try:
            networks.append(ip_network(item))
        except ValueError as error:
            raise ValueError(f"addresses, networks such as 10.0.0.0/8, and unix; {error}") from None
    return TrustedPeers(tuple(networks), unix)


def origins(text: str) -> tuple[str, ...]:
    """Parse ``*``, or a comma list of origins such as ``https://example.org``."""
    found = tuple(item.strip() for item in text.split(","))
    for item in found:
        if item != "*" and not re.fullmatch(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?", item):
            raise ValueError(
                f"*, or origins scheme://host[:port] in lower case, without a path, not {item!r}"
            )
    if "*" in found and len(found) > 1:
        raise ValueError("* alone, which allows every origin, or a list of origins")
    return found
