"""The host and the path of a bucket, for AWS and for every other S3 server.

For AWS, the endpoint rules decide (``endpoint_rules.py``). Another server that is addressed by path
needs no rules: the bucket follows the path of its URL (which also holds for bucket names that are
no host names).

Source: "Virtual hosting of general purpose buckets", Amazon S3 user guide. A path is
percent-encoded once, here: the path that is signed is the path that is sent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

import httpx
import trio

from payloadd.errors import SettingsError
from payloadd.observe.logs import get_logger
from payloadd.storage.s3.aws_config import AwsConfiguration, is_addressed_by_path
from payloadd.storage.s3.sigv4 import quote_key

if TYPE_CHECKING:
    from payloadd.storage.s3.endpoint_rules import EndpointRules

log = get_logger(__name__)

DEFAULT_REGION: Final = "us-east-1"
"""The default of AWS's own tools, and the region that most other S3 servers expect."""


@dataclass(frozen=True)
class BucketEndpoint:
    """A bucket in a region, at AWS or at another server."""

    origin: str
    """Scheme and host, such as ``https://bucket.s3.eu-west-1.amazonaws.com``."""
    base_path: str
    """The path in front of every key; it begins and ends with ``/``."""
    region: str
    """The region of signatures."""
    bucket: str
    configuration: AwsConfiguration
    rules: EndpointRules | None = field(default=None, compare=False, repr=False)

    def target(self, key: str) -> str:
        """Return the path of an object. Raises UnicodeEncodeError for lone surrogates."""
        return self.base_path + quote_key(key)

    async def in_region(self, region: str) -> BucketEndpoint:
        """Return the endpoint of the same bucket in another region.

        The endpoint itself is returned if AWS's rules have no other one for the bucket, such as for
        an access point. The rules are evaluated in a thread.
        """
        if self.rules is None:
            return replace(self, region=region)
        configuration = replace(self.configuration, region=region)
        try:
            found = await trio.to_thread.run_sync(
                find_endpoint, self.bucket, configuration, self.rules
            )
        except SettingsError as error:
            log.warning("region_not_used", region=region, reason=str(error))
            return self
        return self if (found.origin, found.region) == (self.origin, self.region) else found


def find_endpoint(
    bucket: str, configuration: AwsConfiguration, rules: EndpointRules | None
) -> BucketEndpoint:
    """Return the endpoint of ``bucket``.

    ``rules`` may be None for another server than AWS that is addressed by path. Raises
    SettingsError if no request could be sent to the result.
    """
    region = configuration.region or DEFAULT_REGION
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", region):
        raise SettingsError([f"AWS_REGION: {region!r} is not the name of a region"])
    url, signed = _url(bucket, region, configuration, rules)
    try:
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        httpx.URL(origin)
    except (ValueError, httpx.InvalidURL) as error:
        raise SettingsError([f"AWS_ENDPOINT_URL: {url}: {error}"]) from None
    base_path = quote(parts.path.rstrip("/"), safe="/%~:@!$&'()*+,;=") + "/"
    return BucketEndpoint(origin, base_path, signed, bucket, configuration, rules)


def _url(
    bucket: str, region: str, configuration: AwsConfiguration, rules: EndpointRules | None
) -> tuple[str, str]:
    """Return the URL of a bucket, and the region of signatures."""
    endpoint, options = configuration.endpoint, configuration.options
    if (
        endpoint is not None
        and not options.accelerate
        and is_addressed_by_path(bucket, endpoint, options.addressing)
    ):
        return f"{endpoint.rstrip('/')}/{bucket}", region
    assert rules is not None  # noqa: S101 - see aws_config.needs_botocore
    found = rules.resolve(bucket, region, endpoint, options)
    return found.url, found.region
