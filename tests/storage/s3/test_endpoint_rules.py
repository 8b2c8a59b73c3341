"""AWS's endpoint rules: the same host and path as botocore's own client, for every option."""

from __future__ import annotations

import os
import re
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from botocore.session import Session
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from payloadd.config.settings import load
from payloadd.errors import SettingsError
from payloadd.storage.s3.aws_config import new_session, read_configuration
from payloadd.storage.s3.endpoint import find_endpoint
from payloadd.storage.s3.endpoint_rules import EndpointRules

if TYPE_CHECKING:
    from pathlib import Path

KEY = "dt=2026-11-27/a b/ü//~%.ndjson"
ACCESS_POINT = "arn:aws:s3:us-west-2:123456789012:accesspoint/telemetry"
CASES = [
    ({}, {}, "bucket"),
    ({"AWS_REGION": "us-east-1"}, {}, "bucket"),
    ({"AWS_REGION": "cn-north-1"}, {}, "bucket"),
    ({"AWS_REGION": "us-gov-west-1", "AWS_USE_FIPS_ENDPOINT": "true"}, {}, "bucket"),
    ({"AWS_REGION": "us-iso-east-1"}, {}, "bucket"),
    ({"AWS_REGION": "us-isob-east-1"}, {}, "bucket"),
    ({"AWS_REGION": "us-isof-south-1"}, {}, "bucket"),
    ({"AWS_REGION": "eusc-de-east-1"}, {}, "bucket"),
    ({}, {}, "my.bucket"),
    ({}, {}, "my_bucket"),
    ({"S3_ADDRESSING": "path"}, {}, "bucket"),
    ({"S3_ADDRESSING": "virtual"}, {}, "my.bucket"),
    ({}, {"s3.addressing_style": "path"}, "bucket"),
    ({"S3_ADDRESSING": "virtual"}, {"s3.addressing_style": "path"}, "bucket"),
    ({"AWS_USE_FIPS_ENDPOINT": "true"}, {}, "bucket"),
    ({"AWS_USE_FIPS_ENDPOINT": "TRUE"}, {}, "bucket"),
    ({}, {"use_fips_endpoint": "true"}, "bucket"),
    ({"AWS_USE_FIPS_ENDPOINT": "false"}, {"use_fips_endpoint": "true"}, "bucket"),
    ({"AWS_USE_DUALSTACK_ENDPOINT": "true"}, {}, "bucket"),
    ({}, {"use_dualstack_endpoint": "true"}, "bucket"),
    ({}, {"s3.use_dualstack_endpoint": "true"}, "bucket"),
    ({"AWS_USE_FIPS_ENDPOINT": "true", "AWS_USE_DUALSTACK_ENDPOINT": "true"}, {}, "bucket"),
    ({}, {"s3.use_accelerate_endpoint": "true"}, "bucket"),
    ({"AWS_USE_DUALSTACK_ENDPOINT": "true"}, {"s3.use_accelerate_endpoint": "true"}, "bucket"),
    ({"AWS_ENDPOINT_URL": "https://s3-accelerate.amazonaws.com"}, {}, "bucket"),
    ({}, {}, ACCESS_POINT),
    ({}, {}, ACCESS_POINT.replace("accesspoint/", "accesspoint:")),
    ({"AWS_REGION": "eu-west-1"}, {}, ACCESS_POINT),
    ({"AWS_USE_FIPS_ENDPOINT": "true"}, {}, ACCESS_POINT),
    ({"AWS_USE_DUALSTACK_ENDPOINT": "true"}, {}, ACCESS_POINT),
    ({"AWS_ENDPOINT_URL_S3": "https://vpce.example"}, {}, ACCESS_POINT),
    ({"S3_ADDRESSING": "path"}, {}, ACCESS_POINT),
    ({}, {}, "telemetry-abcdefghijklmnopqrstuvwxyz123-s3alias"),
    ({"AWS_ENDPOINT_URL_S3": "http://minio:9000/base/"}, {}, "bucket"),
    ({"AWS_ENDPOINT_URL": "http://minio:9000"}, {}, "bucket"),
    ({"AWS_ENDPOINT_URL": "http://a:1", "AWS_ENDPOINT_URL_S3": "http://b:1"}, {}, "bucket"),
    ({"AWS_ENDPOINT_URL_S3": "http://minio:9000", "S3_ADDRESSING": "virtual"}, {}, "bucket"),
    ({"AWS_ENDPOINT_URL_S3": "http://minio:9000", "AWS_USE_FIPS_ENDPOINT": "true"}, {}, "bucket"),
    ({"AWS_ENDPOINT_URL_S3": "http://x:1"}, {"s3.addressing_style": "virtual"}, "bucket"),
    ({}, {"endpoint_url": "http://minio:9000"}, "bucket"),
    (
        {"AWS_ENDPOINT_URL_S3": "http://x:1", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"},
        {},
        "bucket",
    ),
    (
        {"AWS_ENDPOINT_URL_S3": "http://x:1"},
        {"ignore_configured_endpoint_urls": "true"},
        "bucket",
    ),
    ({"AWS_REGION": ""}, {"region": "eu-north-1"}, "bucket"),
    ({"AWS_REGION": "", "AWS_DEFAULT_REGION": "eu-west-3"}, {}, "bucket"),
]
REFUSED = [
    ({}, {}, "bucket--usw2-az1--x-s3", "S3 Express"),
    (
        {"AWS_ENDPOINT_URL_S3": "http://x:1"},
        {},
        "bucket--usw2-az1--x-s3",
        "S3 Express",
    ),
    ({}, {}, "arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap", "multi-Region"),
    (
        {},
        {},
        "arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-01234567890123456/accesspoint/t",
        "Outposts",
    ),
    ({}, {}, "arn:aws:s3-object-lambda:us-west-2:123456789012:accesspoint/t", "s3-object-lambda"),
    (
        {"AWS_USE_FIPS_ENDPOINT": "true"},
        {"s3.use_accelerate_endpoint": "true"},
        "bucket",
        "Accelerate cannot be used with FIPS",
    ),
    ({"AWS_REGION": "eu_west_1"}, {}, "bucket", "region was not a valid DNS name"),
    ({}, {"s3.addressing_style": "pth"}, "bucket", "one of auto, path, virtual"),
    ({"AWS_REGION": ""}, {"region": "a b"}, "bucket", "AWS configuration: region: 'a b' is not"),
    ({}, {"use_fips_endpoint": "yes"}, "bucket", "use_fips_endpoint: 'yes' is not allowed"),
    ({"AWS_REGION": "eu-west-1"}, {"s3.use_arn_region": "false"}, ACCESS_POINT, "region"),
    (
        {"AWS_ENDPOINT_URL_S3": "http://[::1]:9000"},
        {},
        ACCESS_POINT,
        r"AWS_ENDPOINT_URL: .*\[::1\]",
    ),
]


@pytest.fixture(scope="module")
def rules() -> EndpointRules:
    """Return AWS's endpoint rules."""
    return EndpointRules(Session())


def written(profile: dict[str, str]) -> str:
    """Return a file of profiles with one profile; names with a dot are in a section."""
    lines = [f"{name} = {text}\n" for name, text in profile.items() if "." not in name]
    sections = sorted({name.partition(".")[0] for name in profile if "." in name})
    for section in sections:
        lines.append(f"{section} =\n")
        lines += [
            f"  {name.partition('.')[2]} = {text}\n"
            for name, text in profile.items()
            if name.startswith(f"{section}.")
        ]
    return "[default]\n" + "".join(lines)


def environment(names: dict[str, str], profile: dict[str, str], folder: Path) -> dict[str, str]:
    """Return the variables of a process with these names and this profile.

    us-east-1 is regional unless the profile says something else, as in the other SDKs.
    """
    profile = {"s3.us_east_1_regional_endpoint": "regional", **profile}
    (folder / "config").write_text(written(profile))
    return {
        "AWS_REGION": "us-west-2",
        "AWS_CONFIG_FILE": str(folder / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(folder / "absent"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        **names,
    }


def our_url(environ: dict[str, str], bucket: str, rules: EndpointRules) -> tuple[str, str, str]:
    """Return scheme with host, path, and region of signatures of an upload by payloadd."""
    with pytest.MonkeyPatch.context() as patch:
        replace_environment(patch, environ)
        found = load({**environ, "STORE_URL": f"s3://{bucket}"})
        configuration = read_configuration(found, new_session(found))
    endpoint = find_endpoint(bucket, configuration, rules)
    return endpoint.origin, endpoint.target(KEY), endpoint.region


def their_url(environ: dict[str, str], bucket: str) -> tuple[str, str, str]:
    """Return the same of botocore's client, from its event ``before-send``.

    The client gets AWS_REGION and S3_ADDRESSING as arguments.
    """
    with pytest.MonkeyPatch.context() as patch:
        replace_environment(patch, environ)
        style = environ.get("S3_ADDRESSING", "auto")
        sent: list[Any] = []

        def intercept(request: Any, **_: object) -> AWSResponse:  # noqa: ANN401 - of botocore
            sent.append(request)
            return AWSResponse(request.url, 200, {}, _EmptyBody())

        config = Config(s3={"addressing_style": style}) if style != "auto" else None
        client = new_botocore_session().create_client(
            "s3", region_name=environ["AWS_REGION"] or None, config=config
        )
        with closing(client):
            client.meta.events.register("before-send.s3", intercept)
            client.put_object(Bucket=bucket, Key=KEY, Body=b"")
    parts = urlsplit(sent[0].url)
    scope = sent[0].headers["Authorization"].decode().partition("Credential=")[2].split("/")
    return f"{parts.scheme}://{parts.netloc}", parts.path, scope[2]


LOADER = Session().get_component("data_loader")
"""One loader for all sessions: it keeps the parsed files."""


def new_botocore_session() -> Any:  # noqa: ANN401 - botocore has no types
    """Return a session that has read no profile yet."""
    session = Session()
    session.register_component("data_loader", LOADER)
    return session


class _EmptyBody:
    """The body of an empty response, as botocore reads it."""

    def stream(self) -> list[bytes]:
        """Return no pieces."""
        return []


def replace_environment(patch: pytest.MonkeyPatch, environ: dict[str, str]) -> None:
    """Replace every variable of AWS: botocore reads the environment of the process."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    for name, text in environ.items():
        if text:
            patch.setenv(name, text)


@pytest.mark.parametrize(("names", "profile", "bucket"), CASES)
def test_an_upload_has_the_url_of_botocores_client(
    tmp_path: Path,
    rules: EndpointRules,
    names: dict[str, str],
    profile: dict[str, str],
    bucket: str,
) -> None:
    """A variable that other AWS tools follow would be ignored: FIPS, dual stack, partitions."""
    environ = environment(names, profile, tmp_path)

    assert our_url(environ, bucket, rules) == their_url(environ, bucket)


def test_us_east_1_is_regional_by_default(tmp_path: Path, rules: EndpointRules) -> None:
    """A bucket behind a private endpoint of a network could not be reached (s3.amazonaws.com)."""
    environ = environment({"AWS_REGION": "us-east-1"}, {}, tmp_path)
    (tmp_path / "config").write_text("[default]\n")

    assert our_url(environ, "bucket", rules)[0] == "https://bucket.s3.us-east-1.amazonaws.com"


options = st.fixed_dictionaries(
    {},
    optional={
        "AWS_REGION": st.sampled_from(
            ["us-east-1", "us-west-2", "cn-north-1", "us-gov-east-1", "us-iso-east-1"]
        ),
        "AWS_USE_FIPS_ENDPOINT": st.sampled_from(["true", "false"]),
        "AWS_USE_DUALSTACK_ENDPOINT": st.sampled_from(["true", "false"]),
        "AWS_ENDPOINT_URL_S3": st.sampled_from(
            ["http://minio:9000", "https://s3.example/base", "http://10.0.0.1", "http://[::1]:9000"]
        ),
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": st.sampled_from(["true", "false"]),
        "AWS_S3_USE_ARN_REGION": st.sampled_from(["true", "false"]),
        "S3_ADDRESSING": st.sampled_from(["auto", "path", "virtual"]),
    },
)  # fmt: skip
profiles = st.fixed_dictionaries(
    {},
    optional={
        "use_fips_endpoint": st.sampled_from(["true", "false"]),
        "use_dualstack_endpoint": st.sampled_from(["true", "false"]),
        "endpoint_url": st.just("http://profile.example:9000"),
        "ignore_configured_endpoint_urls": st.sampled_from(["true", "false"]),
        "s3.addressing_style": st.sampled_from(["auto", "path", "virtual"]),
        "s3.use_accelerate_endpoint": st.sampled_from(["true", "false"]),
        "s3.use_dualstack_endpoint": st.sampled_from(["true", "false"]),
        "s3.us_east_1_regional_endpoint": st.sampled_from(["legacy", "regional"]),
    },
)
buckets = st.sampled_from(["bucket", "my.bucket", "my_bucket", ACCESS_POINT])


@pytest.mark.no_cover
@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(names=options, profile=profiles, bucket=buckets)
def test_any_combination_has_the_url_of_botocores_client(
    tmp_path: Path,
    rules: EndpointRules,
    names: dict[str, str],
    profile: dict[str, str],
    bucket: str,
) -> None:
    """Two options together would send objects to another host than every other AWS tool."""
    environ = environment(names, profile, tmp_path)
    try:
        theirs = their_url(environ, bucket)
        # botocore puts names in front of an address, which is no host then.
        assume(theirs[0].startswith("http://[") or not re.search(r"\[|\.10\.0\.0\.1", theirs[0]))
    except (BotoCoreError, ValueError) as error:
        assume("IPv6" not in str(error))  # Python 3.14 finds out that it is none
        with pytest.raises(SettingsError):
            our_url(environ, bucket, rules)
        return

    assert our_url(environ, bucket, rules) == theirs


@pytest.mark.parametrize(("names", "profile", "bucket", "reason"), REFUSED)
def test_an_endpoint_that_cannot_be_served_is_refused_in_words(
    tmp_path: Path,
    rules: EndpointRules,
    names: dict[str, str],
    profile: dict[str, str],
    bucket: str,
    reason: str,
) -> None:
    """Every upload would fail with an error that does not name the setting."""
    environ = environment(names, profile, tmp_path)

    with pytest.raises(SettingsError, match=reason):
        our_url(environ, bucket, rules)
