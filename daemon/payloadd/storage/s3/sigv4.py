"""AWS Signature Version 4 as S3 uses it: pure functions.

Source: "Authenticating Requests: Using the Authorization Header (AWS Signature Version 4)", Amazon
S3 API reference. S3 differs from other services in two ways: the path is signed as it is sent
(encoded once, with ``//`` and ``..`` unchanged), and a header contains the hash of the body.

botocore's own signer was rejected: its CPU time per object was measurable. The tests compare with
it.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from binascii import hexlify
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
BODY_HASH: Final = "x-amz-content-sha256"
_UNRESERVED: Final = re.compile(r"[A-Za-z0-9._~/-]*")


@dataclass(frozen=True, slots=True)
class Keys:
    """An access key, its secret key, and the session token of temporary keys.

    Raises ValueError for characters that cannot be sent in a header.
    """

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        sent = self.access_key + (self.token or "")
        if not (sent.isascii() and sent.isprintable()) or " " in sent:
            raise ValueError("an access key or session token has characters that are not allowed")
        try:
            self.secret_key.encode()
        except UnicodeEncodeError:
            raise ValueError("the secret key is not UTF-8") from None

    def secrets(self) -> tuple[str, ...]:
        """Return the texts that no log line and no error may show."""
        return (self.secret_key, *([self.token] if self.token else []))


@dataclass(slots=True, eq=False)
class Signer:
    """The part of a signature that all requests of a second share.

    ``moment`` is Unix time in seconds; a signature contains whole seconds.
    """

    keys: Keys
    region: str
    moment: float
    added: dict[str, str] = field(init=False, repr=False)
    """The headers of every signed request, except ``authorization``."""
    credential: str = field(init=False, repr=False)
    """The beginning of ``authorization``."""
    preamble: str = field(init=False, repr=False)
    """The signed text up to the hash of the request."""
    key: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.moment))
        day = stamp[:8]
        scope = f"{day}/{self.region}/s3/aws4_request"
        self.added = {"x-amz-date": stamp}
        if self.keys.token:
            self.added["x-amz-security-token"] = self.keys.token
        self.credential = f"{_ALGORITHM} Credential={self.keys.access_key}/{scope}"
        self.preamble = f"{_ALGORITHM}\n{stamp}\n{scope}\n"
        self.key = _day_key(self.keys.secret_key, day, self.region)


class SignatureTemplate:
    """The part of a signature that requests share which differ in path and some headers only.

    The headers are sorted, trimmed and joined once, so a signature takes few operations on strings
    and two hashes.
    """

    def __init__(
        self, signer: Signer, method: str, fixed: Mapping[str, str], varying: Sequence[str]
    ) -> None:
        """Prepare signatures for these headers, whose names are in lower case.

        ``fixed`` are the headers that all requests share, ``host`` included; ``varying`` are the
        names of those that differ, sorted, ``x-amz-content-sha256`` included.
        """
        texts = {name: _escaped(text) for name, text in {**fixed, **signer.added}.items()}
        covered = sorted((texts | dict.fromkeys(varying, "%b")).items())
        lines = "".join([f"{name}:{text}\n" for name, text in covered])
        names = ";".join([name for name, _ in covered])
        # One format of bytes for the whole request: a dictionary of the values was measurable.
        self._canonical = f"{method}\n%b\n%b\n{lines}\n{names}\n%b".encode()
        self._body_hash = varying.index(BODY_HASH)
        self._begin = f"{signer.credential}, SignedHeaders={names}, Signature=".encode("ascii")
        self._preamble = signer.preamble.encode("ascii")
        # HMAC (RFC 2104) with the key hashed once: hmac.digest() hashes it for each request.
        block = signer.key.ljust(hashlib.sha256().block_size, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block))

    def sign(self, target: bytes, values: tuple[bytes, ...]) -> bytes:
        """Return the value of the header ``authorization``.

        ``target`` is path and query exactly as they are sent. ``values`` are the values of the
        varying headers in their order, without spaces at their ends and without double spaces.
        """
        path, query = target, b""
        if b"?" in target:
            path, query = _canonical(target)
        canonical = self._canonical % (path, query, *values, values[self._body_hash])
        signed = self._preamble + hexlify(hashlib.sha256(canonical).digest())
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(signed)
        outer.update(inner.digest())
        return self._begin + hexlify(outer.digest())


def quote_key(key: str) -> str:
    """Return ``key`` percent-encoded for a path; unreserved characters and ``/`` are not encoded.

    Raises UnicodeEncodeError for lone surrogates.
    """
    # Most keys need no encoding, and quote() is slow in finding that out.
    return key if _UNRESERVED.fullmatch(key) else quote(key, safe="/")


def _escaped(text: str) -> str:
    """Return the value of a header as it is signed, as a part of a format string."""
    return " ".join(text.split()).replace("%", "%%")


def _canonical(target: bytes) -> tuple[bytes, bytes]:
    """Return path and canonical query: parameters sorted, each with a ``=``; both are encoded."""
    path, _, query = target.partition(b"?")
    pairs = sorted(part.partition(b"=")[::2] for part in query.split(b"&") if part)
    return path, b"&".join(b"%b=%b" % pair for pair in pairs)


@lru_cache(maxsize=8)
def _day_key(secret_key: str, day: str, region: str) -> bytes:
    """Return the signing key of a day (UTC); the cache saves four of the five HMACs."""
    key = f"AWS4{secret_key}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
