"""The reason why there are no keys, without the secrets of credential processes and servers."""

from __future__ import annotations

import json
import stat
import sys
from typing import TYPE_CHECKING

import pytest
import trio
from botocore.exceptions import (
    ClientError,
    CredentialRetrievalError,
    EndpointConnectionError,
    HTTPClientError,
    MetadataRetrievalError,
)

from payloadd.config import settings as config
from payloadd.errors import OperatorStoreError, SettingsError
from payloadd.storage.s3.credential_errors import failure_text
from payloadd.storage.s3.credentials import find_access
from payloadd.storage.s3.response import S3Response

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "QXZ789-not-to-be-shown"
NAMES = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
]


@pytest.fixture(autouse=True)
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only file of profiles that botocore reads."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "config"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(path))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return path


async def refusal(profile: Path, *lines: str) -> str:
    """Return the reason why there are no keys, for these lines in the default profile."""
    await trio.Path(profile).write_text("[default]\nregion = eu-west-1\n" + "\n".join(lines))
    access = await find_access(config.load({"STORE_URL": "s3://bucket"}))
    with pytest.raises(OperatorStoreError) as caught, trio.fail_after(60):
        await access.credentials.get()
    return str(caught.value)


def program(folder: Path, text: str) -> Path:
    """Write an executable Python program, and return its path."""
    path = folder / "vault-helper"
    path.write_text(f"#!{sys.executable}\n{text}\n")
    path.chmod(stat.S_IRWXU)
    return path


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            f"import sys; print('{SECRET}', file=sys.stderr); sys.exit(3)",
            "ended with exit status 3",
        ),
        (f"print('{SECRET}')", "printed no valid credentials (JSONDecodeError)"),
        (f'print(\'{{"Version": "{SECRET}"}}\')', "(CredentialRetrievalError)"),
        (f"import sys; sys.stdout.buffer.write(b'\\xff{SECRET}')", "(UnicodeDecodeError)"),
        (
            f"print({json.dumps(json.dumps({'Version': 1, 'X': SECRET}))})",
            "printed no valid credentials",
        ),
        (f"import os; os.kill(os.getpid(), 9)  # {SECRET}", "exit status -9"),
    ],
)
async def test_output_of_a_credential_process_is_not_shown(
    tmp_path: Path, profile: Path, source: str, expected: str
) -> None:
    """Its output, its errors and its arguments may contain secrets."""
    command = program(tmp_path, source)
    text = await refusal(profile, f"credential_process = {command} --token {SECRET}")
    assert text.startswith("NoCredentials: credential_process vault-helper ")
    assert expected in text
    assert SECRET not in text


@pytest.mark.parametrize(
    "command",
    [
        f"/not/there --token {SECRET}",
        f'"/not/there --token {SECRET}"',  # quoted wrong: all of it is the program
    ],
)
async def test_a_missing_credential_process_is_named(profile: Path, command: str) -> None:
    """An operator would not see that the program is missing."""
    text = await refusal(profile, f"credential_process = {command}")
    assert (
        text
        == "NoCredentials: credential_process there could not be run: No such file or directory"
    )


async def test_a_command_with_a_missing_quote_is_not_shown(profile: Path) -> None:
    """The log would show a command, and the secrets in it."""
    text = await refusal(profile, f"credential_process = 'x --token {SECRET}")
    assert SECRET not in text
    assert "ValueError" in text


async def test_a_credential_process_of_a_source_profile_is_not_shown(
    tmp_path: Path, profile: Path
) -> None:
    """Its output would be shown where a role is assumed with its keys."""
    command = program(tmp_path, f"import sys; print('{SECRET}', file=sys.stderr); sys.exit(3)")
    text = await refusal(
        profile,
        "role_arn = arn:aws:iam::123456789012:role/x",
        "source_profile = other",
        "[profile other]",
        f"credential_process = {command} {SECRET}",
    )
    assert text == "NoCredentials: credential_process vault-helper ended with exit status 3"


@pytest.mark.parametrize(
    "userinfo", ["user:QXZ789/QXZ789", "user:QXZ789", "user:Q@X/QXZ789?QXZ789"]
)
async def test_the_password_of_an_sts_endpoint_is_not_shown(
    tmp_path: Path, profile: Path, monkeypatch: pytest.MonkeyPatch, userinfo: str
) -> None:
    """Botocore's error names the endpoint that failed, with its password."""
    token = tmp_path / "token"
    token.write_text(SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://{userinfo}@127.0.0.1:1/x")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/x")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    text = await refusal(profile)
    assert "QXZ789" not in text
    assert text.startswith("NoCredentials: ")


@pytest.mark.parametrize("where", ["endpoint_url", "services"])
async def test_the_password_of_an_endpoint_in_a_profile_is_not_shown(
    profile: Path, where: str
) -> None:
    """The message of a refused start would show it."""
    url = f"https://user:{SECRET}/x@host"
    if where == "services":
        lines = f"services = x\n[services x]\ns3 =\n  endpoint_url = {url}\n"
    else:
        lines = f"endpoint_url = {url}\n"
    await trio.Path(profile).write_text("[default]\n" + lines)
    with pytest.raises(SettingsError, match="AWS configuration: endpoint_url") as caught:
        await find_access(config.load({"STORE_URL": "s3://bucket"}))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        MetadataRetrievalError(error_msg=f"Received non 200 response 403: {SECRET}"),
        HTTPClientError(error=ValueError(f"Port could not be cast to integer value as '{SECRET}'")),
        CredentialRetrievalError(provider="custom-process", error_msg=SECRET),
        EndpointConnectionError(endpoint_url=f"http://user:{SECRET}/x@host/"),
        KeyError(SECRET),
        ValueError(SECRET),
    ],
)
def test_errors_that_quote_a_response_or_a_url_show_their_class_only(error: Exception) -> None:
    """The log would contain a server's response, or a part of a URL with a password."""
    assert SECRET not in failure_text(error)
    assert type(error).__name__ in failure_text(error)


def test_errors_with_names_and_reasons_are_shown() -> None:
    """An operator would see a class name instead of the service's reason."""
    denied = ClientError(
        {"Error": {"Code": "AccessDenied", "Message": "not authorized to assume x"}}, "AssumeRole"
    )
    assert "not authorized to assume x" in failure_text(denied)
    assert failure_text(LookupError("none")) == "none (LookupError)"
    assert len(failure_text(OSError("x" * 9000))) < 400


def test_secrets_in_a_response_are_hidden() -> None:
    """A store that quotes a refused token would put it into the log."""
    token = "FwoGZXIvYXdzE" + "x/+=" * 60
    text = f"<Error><Code>InvalidToken</Code><Message>bad {token} {SECRET}</Message></Error>"
    response = S3Response(400, (), text.encode(), (SECRET, token))
    assert response.message == "HTTP 400, bad *** ***"
