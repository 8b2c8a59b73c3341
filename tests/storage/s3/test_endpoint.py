"""Hosts and paths of buckets at other servers than AWS, and a region that is learnt later."""

from __future__ import annotations

import threading

import pytest
import trio
from botocore.session import Session

from payloadd.errors import SettingsError
from payloadd.storage.s3.aws_config import AwsConfiguration, EndpointOptions
from payloadd.storage.s3.endpoint import find_endpoint
from payloadd.storage.s3.endpoint_rules import EndpointRules

KEY = "a b/ü//../~%.ndjson"
QUOTED = "a%20b/%C3%BC//../~%25.ndjson"


@pytest.fixture(scope="module")
def rules() -> EndpointRules:
    """Return AWS's endpoint rules."""
    return EndpointRules(Session())


@pytest.mark.parametrize(
    ("bucket", "endpoint", "url"),
    [
        ("bucket", "http://minio:9000", "http://minio:9000/bucket/"),
        ("my_bucket", "http://minio:9000", "http://minio:9000/my_bucket/"),
        ("bucket", "http://[::1]:9000", "http://[::1]:9000/bucket/"),
        ("bucket", "https://h/s3%20/ö/", "https://h/s3%20/%C3%B6/bucket/"),
    ],
)
def test_an_object_at_another_server_has_the_path_of_its_bucket(
    bucket: str, endpoint: str, url: str
) -> None:
    """Objects would be sent to a wrong host, or stored under a wrong key."""
    found = find_endpoint(bucket, AwsConfiguration(region="r", endpoint=endpoint), None)

    assert found.origin + found.target(KEY) == url + QUOTED
    assert found.region == "r"


@pytest.mark.parametrize(
    ("bucket", "endpoint", "url"),
    [
        ("bucket", "http://minio:9000", "http://bucket.minio:9000/"),
        ("bucket", "https://h/base", "https://bucket.h/base/"),
        ("bucket", "http://127.0.0.1:9000", "http://127.0.0.1:9000/bucket/"),
        ("my.bucket", "http://[::1]:9000", "http://[::1]:9000/my.bucket/"),
        ("my_bucket", "http://minio:9000", "http://minio:9000/my_bucket/"),
    ],
)
def test_a_bucket_is_a_part_of_the_host_of_another_server_on_request(
    rules: EndpointRules, bucket: str, endpoint: str, url: str
) -> None:
    """A server that serves buckets by host name alone could not be used."""
    options = EndpointOptions(addressing="virtual")
    configuration = AwsConfiguration(region="r", endpoint=endpoint, options=options)
    found = find_endpoint(bucket, configuration, rules)

    assert found.origin + found.target(KEY) == url + QUOTED


@pytest.mark.parametrize(
    ("region", "endpoint", "setting"),
    [("eu west", None, "AWS_REGION"), ("r", "http://h:port", "AWS_ENDPOINT_URL")],
)
def test_an_invalid_region_or_endpoint_stops_the_start(
    region: str, endpoint: str | None, setting: str
) -> None:
    """A typing error would be found at the first upload instead of at the start."""
    with pytest.raises(SettingsError, match=setting):
        find_endpoint("bucket", AwsConfiguration(region=region, endpoint=endpoint), None)


async def test_a_learnt_region_keeps_every_option(rules: EndpointRules) -> None:
    """Uploads would leave the FIPS endpoints as soon as the region is corrected."""
    configuration = AwsConfiguration(
        region="us-west-2", options=EndpointOptions(use_fips=True, use_dualstack=True)
    )
    before = find_endpoint("bucket", configuration, rules)
    after = await before.in_region("us-east-2")

    assert before.origin == "https://bucket.s3-fips.dualstack.us-west-2.amazonaws.com"
    assert after.origin == "https://bucket.s3-fips.dualstack.us-east-2.amazonaws.com"
    assert after.region == "us-east-2"


async def test_a_learnt_region_is_resolved_in_a_thread(
    rules: EndpointRules, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other requests would wait for the rules."""
    threads = []
    resolve = EndpointRules.resolve

    def watched(*arguments: object) -> object:
        threads.append(threading.current_thread())
        return resolve(*arguments)  # type: ignore[arg-type]

    endpoint = find_endpoint("bucket", AwsConfiguration(region="us-west-2"), rules)
    monkeypatch.setattr(EndpointRules, "resolve", watched)
    await endpoint.in_region("eu-west-1")

    assert threads
    assert threading.main_thread() not in threads


async def test_an_access_point_keeps_its_region(rules: EndpointRules) -> None:
    """An upload would be repeated, with the same signature, for an answer that names a region."""
    bucket = "arn:aws:s3:us-west-2:123456789012:accesspoint/telemetry"
    endpoint = find_endpoint(bucket, AwsConfiguration(region="us-east-1"), rules)

    assert endpoint.region == "us-west-2"
    assert await endpoint.in_region("eu-west-1") is endpoint


async def test_another_server_keeps_its_address_in_a_learnt_region() -> None:
    """Uploads to a private server would go to AWS."""
    configuration = AwsConfiguration(region="r", endpoint="http://minio:9000")
    after = await find_endpoint("bucket", configuration, None).in_region("eu-west-1")

    assert (after.origin, after.base_path) == ("http://minio:9000", "/bucket/")
    assert after.region == "eu-west-1"


async def test_a_learnt_region_without_an_endpoint_is_not_used(rules: EndpointRules) -> None:
    """A wrong answer would end uploads with an exception that no worker expects."""
    configuration = AwsConfiguration(region="us-west-2", options=EndpointOptions(accelerate=True))
    before = find_endpoint("bucket", configuration, rules)
    with trio.fail_after(60):
        assert await before.in_region("cn-north-1") is before
