"""Say what is wrong with an address or a URL, where a parser has refused it.

The value of a setting is shown beside the reason, without the password that a URL may contain: no
reason repeats one.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address
from typing import Final
from urllib.parse import urlsplit

from payloadd.config.bucket_names import why_no_bucket

LARGEST_PORT: Final = 65535
ACCESS_POINT: Final = (
    r"arn:[a-z0-9-]+:s3[a-z-]*:[a-z0-9-]*:[0-9]{12}:"
    r"(?:outpost[:/][a-z0-9-]+[:/])?accesspoint[:/][A-Za-z0-9.-]+"
)
"""ARN of an access point; its last part follows ``:`` or ``/``, as in AWS's tools."""
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_NO_USER: Final = "a user or a password does not belong in it"
_LONGEST_LABEL: Final = 63
"""Bytes of a part of a host's name (RFC 1035, section 2.3.4)."""


def is_unicode(text: str) -> bool:
    """Return whether a text can be encoded in UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_host(v6: str | None, host: str | None) -> bool:
    """Return whether an IPv6 address is one; of a host, whether it is no wrong IPv4 address."""
    try:
        if v6 is not None:
            IPv6Address(v6)
        elif re.fullmatch(r"[0-9.]+", host or ""):
            IPv4Address(host or "")
    except ValueError:
        return False
    return True


def why_no_address(text: str) -> str:
    """Return what is wrong with the address of a listener."""
    host, _, port = text.rpartition(":")
    alone = text.isdecimal() or host in {"", "*"}
    number = text if text.isdecimal() else port
    is_port = port.isdecimal() and len(port) < 6 and int(port) <= LARGEST_PORT  # noqa: PLR2004 - digits
    faults = (
        (not text, "there is nothing between two commas, or at an end"),
        ("@" in text or "://" in text, "it has neither a scheme such as http:// nor a user"),
        (
            text.startswith(("unix:", "/", ".")),
            "the path of a Unix socket is absolute, with unix: in front of it",
        ),
        (
            alone and number.isdecimal(),
            (
                f"in {text!r} the host is missing: 127.0.0.1:{number} is open to this machine"
                f" alone, 0.0.0.0:{number} and [::]:{number} to others too"
            ),
        ),
        (alone or text.endswith("]"), f"in {text!r} the port is missing"),
        (
            ":" in host and not host.startswith("["),
            f"in {text!r} the brackets of an IPv6 address are missing: [::1]:8080",
        ),
        (not is_port, f"{port!r} is no port"),
    )
    other = f"{host!r} is neither the name of a host nor an IP address"
    return next((reason for is_so, reason in faults if is_so), other)


def why_no_store(kind: str, bucket: str, prefix: str) -> str | None:
    """Return what is wrong with the URL of a store; None: nothing.

    ``kind`` is the scheme with ``://``, ``""`` without one.
    """
    faults = (
        (kind == "file://", "the path must be one of this machine, without a NUL"),
        (
            kind in {"http://", "https://"},
            "the address of an S3 server belongs in AWS_ENDPOINT_URL_S3, the bucket here",
        ),
        (kind != "s3://", "it begins with neither s3:// nor file://"),
        ("@" in bucket, _NO_USER),
        (not is_unicode(prefix), "the prefix is not UTF-8"),
        (_CONTROL.search(bucket + prefix), "it has a control character"),
    )
    reason = next((reason for is_so, reason in faults if is_so), None)
    if reason is not None:
        return reason
    if bucket.startswith("arn:"):
        known = re.fullmatch(ACCESS_POINT, bucket) is not None
        return None if known else "an ARN has to be that of an access point"
    reason = why_no_bucket(bucket)
    # What looks like the bucket may be a part of a password that has a slash.
    return _NO_USER if reason is not None and "@" in prefix else reason


def why_no_endpoint(text: str) -> str | None:
    """Return what is wrong with the URL of an endpoint; None: nothing."""
    faults = (
        (
            not re.match("https?://", text, re.IGNORECASE),
            "it does not begin with http:// or https://",
        ),
        ("@" in text, _NO_USER),
        ("?" in text, "a query does not belong in it"),
        ("#" in text, "a fragment does not belong in it"),
        (
            not text.isascii() or not text.isprintable() or " " in text,
            "it has characters that no URL has",
        ),
    )
    reason = next((reason for is_so, reason in faults if is_so), None)
    return _why_no_server(text) if reason is None else reason


def _why_no_server(url: str) -> str | None:
    """Return what is wrong with host and port of a URL; None: nothing."""
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        return str(error)
    if not host:
        return "the host is missing"
    sizes = [len(label) for label in host.removesuffix(".").split(".")]
    if min(sizes) == 0 or max(sizes) > _LONGEST_LABEL:
        return f"a part of the host is empty or longer than {_LONGEST_LABEL} characters"
    return "0 is no port of a server" if port == 0 else None
