"""AWS Signature Version 4, in the flavour of S3: pure functions.

The document is "Authenticating Requests: Using the Authorization Header (AWS Signature
Version 4)" of the S3 API reference. S3 differs from the other services in two ways: the
path is signed as it is sent (encoded once, ``//`` and ``..`` left alone), and the hash of
the body travels in a header of its own.

botocore does the same in fifteen times the time, a request's worth of CPU for every
object; it is the oracle of the tests instead.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping

_ALGORITHM: Final = "AWS4-HMAC-SHA256"
BODY_HASH: Final = "x-amz-content-sha256"


@dataclass(frozen=True, slots=True)
class Keys:
    """An access key, its secret, and the session token if the keys are temporary.

    Raises ValueError for what cannot be sent in a header.
    """

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        sent = self.access_key + (self.token or "")
        if not (sent.isascii() and sent.isprintable()) or " " in sent:
            raise ValueError("access key or session token with characters that no key has")
        try:
            self.secret_key.encode()
        except UnicodeEncodeError:
            raise ValueError("a secret key that is not UTF-8") from None


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs requests to S3 with ``keys`` in ``region`` at ``moment`` (Unix time in seconds)."""

    keys: Keys
    region: str
    moment: float

    def sign(self, method: str, target: str, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers that make a request a signed one, to be added to it.

        ``target`` is path and query exactly as sent. ``headers`` (lower-case names) are the
        ones the signature covers: ``host`` and ``x-amz-content-sha256`` have to be among them.
        """
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.moment))
        added = {"x-amz-date": stamp}
        if self.keys.token:
            added["x-amz-security-token"] = self.keys.token
        covered = sorted({**headers, **added}.items())
        names = ";".join([name for name, _ in covered])
        lines = "".join([f"{name}:{' '.join(text.split())}\n" for name, text in covered])
        path, _, query = target.partition("?")
        canonical = "\n".join(
            (method, path, _canonical_query(query), lines, names, headers[BODY_HASH])
        )
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        day = stamp[:8]
        scope = f"{day}/{self.region}/s3/aws4_request"
        key = _day_key(self.keys.secret_key, day, self.region)
        signature = _mac(key, f"{_ALGORITHM}\n{stamp}\n{scope}\n{digest}").hex()
        added["authorization"] = (
            f"{_ALGORITHM} Credential={self.keys.access_key}/{scope},"
            f" SignedHeaders={names}, Signature={signature}"
        )
        return added


def quote_key(key: str) -> str:
    """Return ``key`` percent-encoded for a path: unreserved characters and ``/`` stay.

    Raises UnicodeEncodeError for what is not Unicode text (lone surrogates).
    """
    return quote(key, safe="/")


def _canonical_query(query: str) -> str:
    """Return the parameters sorted, each with its ``=``; they are encoded already."""
    pairs = sorted(part.partition("=")[::2] for part in query.split("&") if part)
    return "&".join(f"{name}={value}" for name, value in pairs)


@lru_cache(maxsize=8)
def _day_key(secret_key: str, day: str, region: str) -> bytes:
    """Return the signing key; it changes at midnight UTC, so four of five HMACs are saved."""
    key = f"AWS4{secret_key}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = _mac(key, part)
    return key


def _mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
