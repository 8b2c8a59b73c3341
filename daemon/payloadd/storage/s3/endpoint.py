"""Where a bucket is: host and path, for AWS and for every other S3.

"Virtual hosting of buckets" of the S3 user guide. A path is percent-encoded once, here,
and sent as it is: what is signed is what is sent.
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

# Where nobody said: what AWS's own tools take, and what most other S3s expect in a signature.
DEFAULT_REGION: Final = "us-east-1"
# Partitions whose hosts end differently; the isolated ones need an endpoint in the settings.
_DOMAINS: Final = (("cn-", "amazonaws.com.cn"), ("eusc-", "amazonaws.eu"))


@dataclass(frozen=True)
class BucketEndpoint:
    """A bucket in a region, at AWS (``endpoint`` None) or at an endpoint of its own."""

    bucket: str
    region: str
    endpoint: str | None
    virtual: bool

    def in_region(self, region: str) -> BucketEndpoint:
        """Return the same bucket in another region."""
        return replace(self, region=region)

    @cached_property
    def origin(self) -> str:
        """Scheme and host, ``https://bucket.s3.eu-west-1.amazonaws.com``."""
        scheme, host, _ = self._parts()
        return f"{scheme}://{self.bucket}.{host}" if self.virtual else f"{scheme}://{host}"

    @cached_property
    def _folder(self) -> str:
        base = self._parts()[2]
        return f"{base}/" if self.virtual else f"{base}/{self.bucket}/"

    def target(self, key: str) -> str:
        """Return the path of an object; raises UnicodeEncodeError for lone surrogates."""
        return self._folder + quote_key(key)

    def _parts(self) -> tuple[str, str, str]:
        """Return scheme, host with port, and the path that comes before every other."""
        if self.endpoint is None:
            return "https", _aws_host(self.region), ""
        parts = urlsplit(self.endpoint)
        return parts.scheme, parts.netloc, quote(parts.path.rstrip("/"), safe="/%~:@!$&'()*+,;=")


def find_endpoint(
    settings: Settings, bucket: str, region: str | None, endpoint: str | None
) -> BucketEndpoint:
    """Return the place for ``S3_ADDRESSING``, with what is known of region and endpoint.

    Raises SettingsError when no request could be sent there.
    """
    virtual = settings.s3_addressing == "virtual" or (
        settings.s3_addressing == "auto" and endpoint is None and _is_host_label(bucket)
    )
    place = BucketEndpoint(bucket, region or DEFAULT_REGION, endpoint, virtual)
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", place.region):
        raise SettingsError([f"AWS_REGION: {place.region!r} is no name of a region"])
    try:
        httpx.URL(place.origin)
    except httpx.InvalidURL as error:
        raise SettingsError([f"AWS_ENDPOINT_URL: {place.origin}: {error}"]) from None
    return place


def _is_host_label(bucket: str) -> bool:
    """Return whether a wildcard certificate covers the bucket's host (no dots, RFC 9525)."""
    return re.fullmatch(r"[a-z0-9-]{3,63}", bucket) is not None


def _aws_host(region: str) -> str:
    for start, domain in _DOMAINS:
        if region.startswith(start):
            return f"s3.{region}.{domain}"
    return f"s3.{region}.amazonaws.com"
