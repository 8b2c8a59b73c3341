"""Hosts and paths of buckets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from payloadd.errors import SettingsError
from payloadd.storage.s3.endpoint import find_endpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.config.settings import Settings

KEY = "a b/ü//../~%.ndjson"
QUOTED = "a%20b/%C3%BC//../~%25.ndjson"


@pytest.mark.parametrize(
    ("addressing", "bucket", "region", "endpoint", "url"),
    [
        ("auto", "bucket", "eu-west-1", None, "https://bucket.s3.eu-west-1.amazonaws.com/"),
        ("auto", "bucket", None, None, "https://bucket.s3.us-east-1.amazonaws.com/"),
        ("auto", "bucket", "cn-north-1", None, "https://bucket.s3.cn-north-1.amazonaws.com.cn/"),
        ("auto", "bucket", "eusc-de-1", None, "https://bucket.s3.eusc-de-1.amazonaws.eu/"),
        ("auto", "my.bucket", "eu-west-1", None, "https://s3.eu-west-1.amazonaws.com/my.bucket/"),
        ("auto", "my_bucket", "eu-west-1", None, "https://s3.eu-west-1.amazonaws.com/my_bucket/"),
        ("path", "bucket", "eu-west-1", None, "https://s3.eu-west-1.amazonaws.com/bucket/"),
        ("virtual", "my.bucket", "r", None, "https://my.bucket.s3.r.amazonaws.com/"),
        ("auto", "bucket", "r", "http://minio:9000", "http://minio:9000/bucket/"),
        ("virtual", "bucket", "r", "http://minio:9000", "http://bucket.minio:9000/"),
        ("auto", "bucket", "r", "http://[::1]:9000", "http://[::1]:9000/bucket/"),
        ("auto", "bucket", "r", "https://h/s3%20/ö/", "https://h/s3%20/%C3%B6/bucket/"),
        ("virtual", "bucket", "r", "https://h/base", "https://bucket.h/base/"),
    ],
)
def test_an_object_has_the_url_of_its_bucket(
    make_settings: Callable[..., Settings],
    addressing: str,
    bucket: str,
    region: str | None,
    endpoint: str | None,
    url: str,
) -> None:
    """Objects would be sent to a wrong host, or stored under a wrong key."""
    found = find_endpoint(make_settings(S3_ADDRESSING=addressing), bucket, region, endpoint)

    assert found.origin + found.target(KEY) == url + QUOTED


@pytest.mark.parametrize(
    ("region", "endpoint", "setting"),
    [("eu west", None, "AWS_REGION"), ("r", "http://h:port", "AWS_ENDPOINT_URL")],
)
def test_an_invalid_region_or_endpoint_stops_the_start(
    make_settings: Callable[..., Settings], region: str, endpoint: str | None, setting: str
) -> None:
    """A typing error would be found at the first upload instead of at the start."""
    with pytest.raises(SettingsError, match=setting):
        find_endpoint(make_settings(), "bucket", region, endpoint)
