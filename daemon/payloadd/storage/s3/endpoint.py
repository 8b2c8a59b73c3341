"""The host and the path of a bucket, for AWS and for every other S3 server.

Source: "Virtual hosting of general purpose buckets", Amazon S3 user guide. A path is
percent-encoded once, here: the path that is signed is the path that is sent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

import httpx

from payloadd.errors import SettingsError
from payloadd.storage.s3.sigv4 import quote_key

if TYPE_CHECKING:
    from payloadd.config.settings import Settings

DEFAULT_REGION: Final = "us-east-1"
"""The default of AWS's own tools, and the region that most other S3 servers expect."""
_DOMAINS: Final = (("cn-", "amazonaws.com.cn"), ("eusc-", "amazonaws.eu"))
"""Domains by the beginning of a region. Isolated regions need ``AWS_ENDPOINT_URL``."""


@dataclass(frozen=True)
class BucketEndpoint:
    """A bucket in a region, at AWS (``endpoint`` is None) or at another server."""

    bucket: str
    region: str
    endpoint: str | None
    virtual: bool
    """Whether the bucket is a part of the host name; otherwise it is a part of the path."""

    def in_region(self, region: str) -> BucketEndpoint:
        """Return the same bucket in another region."""
        return replace(self, region=region)

    @cached_property
    def origin(self) -> str:
        """Scheme and host, such as ``https://bucket.s3.eu-west-1.amazonaws.com``."""
        scheme, host, _ = self._parts()
        return f"{scheme}://{self.bucket}.{host}" if self.virtual else f"{scheme}://{host}"

    @cached_property
    def _base_path(self) -> str:
        base = self._parts()[2]
        return f"{base}/" if self.virtual else f"{base}/{self.bucket}/"

    def target(self, key: str) -> str:
        """Return the path of an object. Raises UnicodeEncodeError for lone surrogates."""
        return self._base_path + quote_key(key)

    def _parts(self) -> tuple[str, str, str]:
        """Return scheme, host with port, and path; the path has no ``/`` at its end."""
        if self.endpoint is None:
            return "https", _aws_host(self.region), ""
        parts = urlsplit(self.endpoint)
        return parts.scheme, parts.netloc, quote(parts.path.rstrip("/"), safe="/%~:@!$&'()*+,;=")


def find_endpoint(
    settings: Settings, bucket: str, region: str | None, endpoint: str | None
) -> BucketEndpoint:
    """Return the endpoint of ``bucket`` for the setting ``S3_ADDRESSING``.

    ``region`` and ``endpoint`` are None if they are not configured. Raises SettingsError if no
    request could be sent to the result.
    """
    virtual = settings.s3_addressing == "virtual" or (
        settings.s3_addressing == "auto" and endpoint is None and _is_host_label(bucket)
    )
    found = BucketEndpoint(bucket, region or DEFAULT_REGION, endpoint, virtual)
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", found.region):
        raise SettingsError([f"AWS_REGION: {found.region!r} is not the name of a region"])
    try:
        httpx.URL(found.origin)
    except httpx.InvalidURL as error:
        raise SettingsError([f"AWS_ENDPOINT_URL: {found.origin}: {error}"]) from None
    return found


def _is_host_label(bucket: str) -> bool:
    """Return whether AWS's wildcard certificate covers the bucket's host (RFC 9525: no dots)."""
    return re.fullmatch(r"[a-z0-9-]{3,63}", bucket) is not None


def _aws_host(region: str) -> str:
    for start, domain in _DOMAINS:
        if region.startswith(start):
            return f"s3.{region}.{domain}"
    return f"s3.{region}.amazonaws.com"
