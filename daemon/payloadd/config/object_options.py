"""Parsers of the settings that S3 gets with each object.

They refuse what S3 would refuse for every object. Every parser raises ValueError; the message names
the allowed values.

Source: "PutObject", Amazon S3 API reference; "Categorizing your objects using tags" and "Working
with object metadata", Amazon S3 user guide.
"""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

ACLS: Final = (
    "private",
    "public-read",
    "public-read-write",
    "authenticated-read",
    "aws-exec-read",
    "bucket-owner-read",
    "bucket-owner-full-control",
)
_SSE: Final = ("AES256", "aws:kms", "aws:kms:dsse")
_KMS: Final = ("aws:kms", "aws:kms:dsse")
CHECKSUMS: Final = ("crc32", "crc32c", "crc64nvme", "sha256", "none")
_WITH_AWSCRT: Final = ("crc32c", "crc64nvme")
"""Checksums that only the package awscrt computes fast enough."""

_MOST_TAGS: Final = 10
_LONGEST_TAG: Final = 128
_LONGEST_TAG_VALUE: Final = 256
_MOST_METADATA: Final = 2048 - 200
"""Bytes of all names and values: S3's limit, less those of the daemon's own metadata."""
_OWN_METADATA: Final = frozenset({"payloads", "first", "last", "format"})
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""The name of a header (RFC 9110, section 5.1)."""
_NO_SSE_C: Final = (
    " (SSE-C is not supported: each reader would need the key, and objects whose key is lost cannot"
    " be read again; aws:kms has keys of your own without that)"
)
SSE_C: Final[Mapping[str, str]] = dict.fromkeys(
    ("S3_SSE_CUSTOMER_ALGORITHM", "S3_SSE_CUSTOMER_KEY", "S3_SSE_CUSTOMER_KEY_MD5"),
    "S3_SSE is one of " + ", ".join(_SSE) + _NO_SSE_C,
)
"""Names that a user of SSE-C might set, and why they are refused."""


def header_word(what: str, pattern: str = r"[!-~]{1,1024}") -> Callable[[str], str]:
    """Return a parser of values that match ``pattern``; ``what`` describes them."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(what)
        return text

    return parse


def encryption(text: str) -> str:
    """Parse the value of ``x-amz-server-side-encryption``, in any case."""
    name = next((one for one in _SSE if one.lower() == text.lower()), None)
    if name is None:
        sse_c = re.search(r"sse-?c|customer", text, re.IGNORECASE) is not None
        raise ValueError("one of " + ", ".join(_SSE) + (_NO_SSE_C if sse_c else ""))
    return name


def checksum(text: str) -> str:
    """Parse the name of a checksum, in any case; those of awscrt are refused without it."""
    text = text.lower()
    if text not in CHECKSUMS:
        raise ValueError("one of " + ", ".join(CHECKSUMS))
    if text in _WITH_AWSCRT and find_spec("awscrt") is None:
        raise ValueError(
            f"crc32, sha256 or none: {text} needs the package awscrt,"
            " which `pip install 'payloadd[crt]'` installs"
        )
    return text


def checksum_calculation(text: str) -> str:
    """Parse AWS's ``request_checksum_calculation``, in which AWS's tools ignore case."""
    if text.lower() not in {"when_supported", "when_required"}:
        raise ValueError("when_supported or when_required")
    return text.lower()


def metadata(text: str) -> tuple[tuple[str, str], ...]:
    """Parse ``name=value,name=value``; ``,`` ``&`` ``=`` ``%`` in it are percent-encoded."""
    pairs = _pairs(text, ",")
    found = {name.lower(): value for name, value in pairs}
    good = all(map(_TOKEN.fullmatch, found)) and len(found) == len(pairs)
    # A space at an end, or two in a row, would be signed in another form than they are stored.
    good = good and all(
        value.isascii() and value.isprintable() and " ".join(value.split()) == value
        for value in found.values()
    )
    size = sum(len(name) + len(value) for name, value in found.items())
    if not good or not _OWN_METADATA.isdisjoint(found) or size > _MOST_METADATA:
        raise ValueError(
            "name=value[,name=value...]: names of letters, digits and -, each once, not payloads,"
            " first, last or format; values of printable ASCII, without spaces at their ends;"
            f" {_MOST_METADATA} bytes in all"
        )
    return tuple(found.items())


def tags(text: str) -> str:
    """Parse ``name=value&name=value`` (or with commas), and return it as S3 wants it.

    The result is the value of ``x-amz-tagging``: pairs as in the query of a URL.
    """
    found = _pairs(text, "&")
    good = len(found) <= _MOST_TAGS and len(dict(found)) == len(found)
    good = good and all(
        len(name) <= _LONGEST_TAG
        and len(value) <= _LONGEST_TAG_VALUE
        and not name.lower().startswith("aws:")
        and (name + value).isprintable()
        for name, value in found
    )
    if not good:
        raise ValueError(
            f"name=value[&name=value...]: at most {_MOST_TAGS} tags, each name once, of at most"
            f" {_LONGEST_TAG} characters and not beginning with aws:, values of at most"
            f" {_LONGEST_TAG_VALUE}"
        )
    return "&".join(f"{quote(name, safe='')}={quote(value, safe='')}" for name, value in found)


def _pairs(text: str, separator: str) -> list[tuple[str, str]]:
    """Return names and values, percent-decoded; ``separator`` is for the message.

    Raises ValueError.
    """
    pairs = []
    for part in re.split("[,&]", text):
        name, equals, value = part.partition("=")
        if not equals or not name.strip() or "\udc00" <= max(part, default="") <= "\udfff":
            raise ValueError(
                f"name=value[{separator}name=value...]; , & = % in them as %2C %26 %3D %25"
            )
        pairs.append((unquote(name.strip()), unquote(value.strip())))
    return pairs


def encryption_problems(values: Mapping[str, Any]) -> list[str]:
    """Return the problem of a KMS key that S3_SSE does not use."""
    sse = values.get("s3_sse")
    if not values.get("s3_sse_kms_key_id") or sse in _KMS:
        return []
    allowed = " or ".join(_KMS)
    present = f"is set with S3_SSE={sse}" if sse else "is set, but S3_SSE is not"
    return [f"S3_SSE_KMS_KEY_ID: {present}; allowed is S3_SSE={allowed}"]
