"""AWS's variables and profiles, and the services that give out keys."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from payloadd.storage.s3.aws_config import needs_botocore, new_session, read_configuration
from payloadd.storage.s3.credentials import find_access
from tests.support.faults import Answer, fault_server, in_turn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from payloadd.config.settings import Settings

NO_KEYS = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
STS_KEYS = """<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleResult><Credentials><AccessKeyId>STSKEY</AccessKeyId><SecretAccessKey>s</SecretAccessKey>
<SessionToken>t</SessionToken><Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>
<AssumedRoleUser><Arn>a</Arn><AssumedRoleId>b</AssumedRoleId></AssumedRoleUser></AssumeRoleResult>
</AssumeRoleResponse>"""


@pytest.mark.parametrize(
    ("names", "needed"),
    [
        ({}, False),
        ({"AWS_USE_FIPS_ENDPOINT": "true"}, False),
        ({"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}, True),
        ({"AWS_ENDPOINT_URL_S3": ""}, True),
        ({"AWS_ENDPOINT_URL_S3": "https://s3-accelerate.amazonaws.com"}, True),
        ({"AWS_REGION": ""}, True),
        ({"AWS_PROFILE": "x"}, True),
        ({"S3_ADDRESSING": "virtual"}, True),
        ({"S3_ADDRESSING": "virtual", "AWS_ENDPOINT_URL_S3": "http://10.0.0.1"}, False),
        ({"STORE_URL": "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/x"}, True),
        ({"STORE_URL": "s3://x--usw2-az1--x-s3"}, True),
    ],
)
def test_botocore_is_needed_only_where_the_settings_do_not_say_all(
    make_settings: Callable[..., Settings], tmp_path: Path, names: dict[str, str], *, needed: bool
) -> None:
    """Each start would take time and memory for rules that are not used."""
    absent = str(tmp_path / "absent")
    files = {"AWS_CONFIG_FILE": absent, "AWS_SHARED_CREDENTIALS_FILE": absent}
    settings = make_settings(**{"AWS_ENDPOINT_URL_S3": "http://minio:9000", **files, **names})

    assert needs_botocore(settings) is needed


@pytest.mark.parametrize("name", ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"])
def test_botocore_is_needed_where_a_file_of_profiles_exists(
    make_settings: Callable[..., Settings], tmp_path: Path, name: str
) -> None:
    """The authorities and the addressing of the profile would be ignored."""
    absent = str(tmp_path / "absent")
    files = {"AWS_CONFIG_FILE": absent, "AWS_SHARED_CREDENTIALS_FILE": absent}
    (tmp_path / "file").write_text("")
    files[name] = str(tmp_path / "file")

    assert needs_botocore(make_settings(AWS_ENDPOINT_URL_S3="http://minio:9000", **files))


def test_values_of_the_settings_take_precedence_over_a_profile(
    make_settings: Callable[..., Settings], no_aws: Path
) -> None:
    """Settings of $CREDENTIALS_DIRECTORY, which botocore does not read, would have no effect."""
    (no_aws / "config").write_text(
        "[default]\nca_bundle = /other\nuse_fips_endpoint = true\nuse_dualstack_endpoint = true\n"
    )
    settings = make_settings(
        AWS_CA_BUNDLE="/ca.pem",
        AWS_USE_FIPS_ENDPOINT="false",
        AWS_USE_DUALSTACK_ENDPOINT="false",
        AWS_ENDPOINT_URL="http://x",
        AWS_IGNORE_CONFIGURED_ENDPOINT_URLS="true",
    )
    found = read_configuration(settings, new_session(settings))

    assert str(found.ca_bundle) == "/ca.pem"
    assert not found.options.use_fips
    assert not found.options.use_dualstack
    assert found.endpoint is None


async def test_aws_region_reaches_sts(
    make_settings: Callable[..., Settings], no_aws: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A role could be assumed only with AWS_DEFAULT_REGION, which no other setting wants."""
    (no_aws / "config").write_text(
        "[default]\nrole_arn = arn:aws:iam::123456789012:role/x\nsource_profile = b\n"
        "[profile b]\naws_access_key_id = SOURCE\naws_secret_access_key = s\n"
    )
    async with fault_server(in_turn(Answer(200, STS_KEYS.encode()))) as sts:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
        access = await find_access(make_settings(AWS_REGION="ap-south-1", **NO_KEYS))
        keys = await access.credentials.get()

    assert keys.access_key == "STSKEY"
    (request,) = sts.requests
    assert "/ap-south-1/sts/aws4_request" in request.headers["authorization"]


async def test_keys_of_sso_need_no_other_region(
    make_settings: Callable[..., Settings],
    no_aws: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Keys of an SSO login could be used only with AWS_DEFAULT_REGION."""
    (no_aws / "config").write_text(
        "[default]\nsso_session = work\nsso_account_id = 123456789012\nsso_role_name = x\n"
        "[sso-session work]\nsso_region = eu-west-1\nsso_start_url = https://sso.example/start\n"
    )
    cache = tmp_path / "cache"
    cache.mkdir()
    # botocore finds the home folder when it is imported.
    monkeypatch.setattr("botocore.tokens.SSOTokenProvider._SSO_TOKEN_CACHE_DIR", str(cache))
    token = {
        "accessToken": "t",
        "expiresAt": "2099-01-01T00:00:00Z",
        "region": "eu-west-1",
        "startUrl": "https://sso.example/start",
    }
    name = hashlib.sha1(b"work", usedforsecurity=False).hexdigest()
    (cache / f"{name}.json").write_text(json.dumps(token))
    found = {"accessKeyId": "SSOKEY", "secretAccessKey": "s", "sessionToken": "t"}
    body = json.dumps({"roleCredentials": {**found, "expiration": 4_070_908_800_000}})
    async with fault_server(in_turn(Answer(200, body.encode()))) as sso:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SSO", sso.url)
        access = await find_access(make_settings(AWS_REGION="ap-south-1", **NO_KEYS))
        keys = await access.credentials.get()

    assert keys.access_key == "SSOKEY"
    assert access.configuration.region == "ap-south-1"


async def test_a_metadata_service_in_a_network_of_no_proxy_is_asked_directly(
    make_settings: Callable[..., Settings], no_aws: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests for the keys of a machine would go to a proxy, which cannot reach the service."""
    del no_aws
    keys = {
        "Code": "Success",
        "AccessKeyId": "MACHINE",
        "SecretAccessKey": "s",
        "Token": "t",
        "Expiration": "2099-01-01T00:00:00Z",
    }
    token, role, answer = Answer(200, b"token"), Answer(200, b"role"), json.dumps(keys).encode()
    async with fault_server(in_turn(token, role, Answer(200, answer))) as machine:
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", machine.url)
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("NO_PROXY", "127.0.0.0/8")
        access = await find_access(make_settings(**NO_KEYS))

        assert (await access.credentials.get()).access_key == "MACHINE"
