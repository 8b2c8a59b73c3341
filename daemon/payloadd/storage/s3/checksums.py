"""Checksums of a body: for the signature, for S3 to keep, and to compare with what S3 kept.

Source: "Checking object integrity for data uploads in Amazon S3", Amazon S3 user guide. A checksum
is sent as a header and not as a trailer: several S3 servers refuse trailers.

Over https the signature need not cover the SHA-256 of a body, if the store checks the checksum; see
``variants.py``.
"""

from __future__ import annotations

import hashlib
import zlib
from binascii import b2a_base64, hexlify
from importlib import import_module
from typing import TYPE_CHECKING, Final, Protocol

from payloadd.storage.s3.sigv4 import BODY_HASH

try:
    from isal.isal_zlib import crc32
except ImportError:  # no wheel for this platform: the same numbers, more slowly
    crc32 = zlib.crc32

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Digest = Callable[[Sequence[bytes]], bytes]

CONTENT_MD5: Final = "content-md5"
UNSIGNED: Final = b"UNSIGNED-PAYLOAD"
"""The value of ``x-amz-content-sha256`` for a body that the signature does not cover."""
HEADER: Final = "x-amz-checksum-{}"
_CRC64_BYTES: Final = 8
_CRC32_BYTES: Final = 4
_MANY: Final = 5 * 2**10
"""Bytes from which isal's function is worth the clearing of the vector registers."""
_clear_vector_registers: Final = hashlib.sha512().digest
"""Clear the upper halves of the vector registers (the instruction VZEROUPPER), if OpenSSL's SHA-512
uses them, as on processors with AVX2."""


class _Crc(Protocol):
    """A CRC whose value so far is its second argument."""

    def __call__(self, data: bytes, value: int = 0, /) -> int: ...


def sha256(pieces: Sequence[bytes]) -> bytes:
    """Return the SHA-256 of a body."""
    digest = hashlib.sha256(pieces[0] if pieces else b"")
    for piece in pieces[1:]:
        digest.update(piece)
    return digest.digest()


def md5(pieces: Sequence[bytes]) -> bytes:
    """Return the MD5 of a body. Raises ValueError where the system forbids MD5."""
    digest = hashlib.md5(pieces[0] if pieces else b"", usedforsecurity=False)
    for piece in pieces[1:]:
        digest.update(piece)
    return digest.digest()


def _crc(function: _Crc, size: int) -> Digest:
    """Return the digest of a CRC of ``size`` bytes, sent with its highest byte first."""

    def digest(pieces: Sequence[bytes]) -> bytes:
        value = 0
        for piece in pieces:
            value = function(piece, value)
        return value.to_bytes(size)

    return digest


def _crc32(pieces: Sequence[bytes]) -> bytes:
    """Return the CRC-32 of a body.

    isal's function leaves the upper halves of the vector registers in use. Until they are cleared,
    each SHA-256 of the same thread is slower (on AMD's Zen 4 by a third), which costs more than the
    checksum itself; no later call into Python, zlib or isal clears them.
    """
    if len(pieces) == 1 and len(pieces[0]) < _MANY:
        return zlib.crc32(pieces[0]).to_bytes(_CRC32_BYTES)
    value = 0
    for piece in pieces:
        value = crc32(piece, value)
    _clear_vector_registers()
    return value.to_bytes(_CRC32_BYTES)


def digest_of(name: str) -> Digest | None:
    """Return the function of the checksum ``name``; None for one that cannot be computed here.

    CRC-32C and CRC-64/NVME are those of awscrt, the library below AWS's own SDKs, which is an
    optional dependency.
    """
    if name == "sha256":
        return sha256
    if name == "crc32":
        return _crc32
    if name not in {"crc32c", "crc64nvme"}:
        return None
    try:
        crt = import_module("awscrt.checksums")
    except ImportError:
        return None
    return _crc(getattr(crt, name), _CRC32_BYTES if name == "crc32c" else _CRC64_BYTES)


class BodyHeaders:
    """Makes the values of the headers with hashes of a body.

    ``checksum`` is a value of ``S3_CHECKSUM``.
    """

    def __init__(self, checksum: str) -> None:
        self.checksum = None if checksum == "none" else HEADER.format(checksum)
        """The name of the header with the checksum."""
        self._digest = digest_of(checksum)
        self.may_be_unsigned = checksum not in {"none", "sha256"}
        """Whether there is a checksum that costs less than the SHA-256 of the signature."""

    def names(self, *, content_md5: bool) -> tuple[str, ...]:
        """Return the names of the headers; ``content_md5`` adds Content-MD5 (RFC 1864)."""
        names = (BODY_HASH,) if self.checksum is None else (self.checksum, BODY_HASH)
        return (CONTENT_MD5, *names) if content_md5 else names

    def values(
        self, pieces: Sequence[bytes], *, content_md5: bool, signed_body: bool = True
    ) -> tuple[bytes, ...]:
        """Return the values for a body, in the order of the names."""
        sha = sha256(pieces) if signed_body else None
        values: tuple[bytes, ...] = (UNSIGNED if sha is None else hexlify(sha),)
        digest = self._digest
        if digest is not None:
            # One SHA-256 serves both. A CRC costs a small part of the SHA-256.
            found = sha if sha is not None and digest is sha256 else digest(pieces)
            values = (b2a_base64(found, newline=False), *values)
        if content_md5:
            values = (b2a_base64(md5(pieces), newline=False), *values)
        return values


def differing_checksum(pieces: Sequence[bytes], headers: Mapping[str, str]) -> str | None:
    """Return the name of a checksum header of a response that differs from the body, or None.

    Checksums that cannot be computed here, and those of parts (with a ``-``), are ignored.
    """
    for header, text in headers.items():
        name = header.removeprefix(HEADER.format(""))
        if name == header or "-" in text:
            continue
        digest = digest_of(name)
        if digest is not None and b2a_base64(digest(pieces), newline=False).decode() != text:
            return header
    return None


def has_checksum(headers: Mapping[str, str]) -> bool:
    """Return whether a response repeats a checksum of a whole body that can be computed here."""
    start = HEADER.format("")
    return any(
        name.startswith(start)
        and "-" not in text
        and digest_of(name.removeprefix(start)) is not None
        for name, text in headers.items()
    )
