"""Why there are no keys: said without the secrets of the programs and servers that were asked."""

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
from payloadd.storage.s3.response import Answer

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
    """Return the file of profiles that botocore reads, and nothing else."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "config"
    monkeypatch.setenv("AWS_CONFIG_FILE", str(path))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return path


async def refusal(profile: Path, *lines: str) -> str:
    """Return why there are no keys with these lines in the default profile."""
    await trio.Path(profile).write_text("[default]\nregion = eu-west-1\n" + "\n".join(lines))
    access = await find_access(config.load({"STORE_URL": "s3://bucket"}))
    with pytest.raises(OperatorStoreError) as caught, trio.fail_after(30):
        await access.credentials.get()
    return str(caught.value)


def program(folder: Path, text: str) -> Path:
    """Write a program."""
    path = folder / "vault-helper"
    path.write_text(f"#!{sys.executable}\n{text}\n")
    path.chmod(stat.S_IRWXU)
    return path


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            f"import sys; print('{SECRET}', file=sys.stderr); sys.exit(3)",
            "ended with exit status 3",
        ),
        (f"print('{SECRET}')", "printed something else than credentials (JSONDecodeError)"),
        (f'print(\'{{"Version": "{SECRET}"}}\')', "(CredentialRetrievalError)"),
        (f"import sys; sys.stdout.buffer.write(b'\\xff{SECRET}')", "(UnicodeDecodeError)"),
        (f"print({json.dumps(json.dumps({'Version': 1, 'X': SECRET}))})", "something else"),
        (f"import os; os.kill(os.getpid(), 9)  # {SECRET}", "exit status -9"),
    ],
)
async def test_what_a_credential_process_says_is_not_shown(
    tmp_path: Path, profile: Path, text: str, told: str
) -> None:
    """Its output, its errors and its arguments may hold the secrets it fetches keys with."""
    command = program(tmp_path, text)
    said = await refusal(profile, f"credential_process = {command} --token {SECRET}")
    assert said.startswith("NoCredentials: credential_process vault-helper ")
    assert told in said
    assert SECRET not in said


@pytest.mark.parametrize(
    "command",
    [
        f"/not/there --token {SECRET}",
        f'"/not/there --token {SECRET}"',  # quoted wrong: all of it is the program
    ],
)
async def test_a_credential_process_that_is_not_there(profile: Path, command: str) -> None:
    """An operator would not see that the program is missing."""
    said = await refusal(profile, f"credential_process = {command}")
    assert (
        said
        == "NoCredentials: credential_process there could not be run: No such file or directory"
    )


async def test_a_command_that_cannot_be_split(profile: Path) -> None:
    """A quote that is missing would show the whole command."""
    said = await refusal(profile, f"credential_process = 'x --token {SECRET}")
    assert SECRET not in said
    assert "ValueError" in said


async def test_a_source_profile_with_a_process(tmp_path: Path, profile: Path) -> None:
    """The same program would be shown where a role is assumed with its keys."""
    command = program(tmp_path, f"import sys; print('{SECRET}', file=sys.stderr); sys.exit(3)")
    said = await refusal(
        profile,
        "role_arn = arn:aws:iam::123456789012:role/x",
        "source_profile = other",
        "[profile other]",
        f"credential_process = {command} {SECRET}",
    )
    assert said == "NoCredentials: credential_process vault-helper ended with exit status 3"


@pytest.mark.parametrize(
    "userinfo", ["user:QXZ789/QXZ789", "user:QXZ789", "user:Q@X/QXZ789?QXZ789"]
)
async def test_an_endpoint_with_a_password(
    tmp_path: Path, profile: Path, monkeypatch: pytest.MonkeyPatch, userinfo: str
) -> None:
    """The endpoint of another service is used for the keys, and shown when it fails."""
    token = tmp_path / "token"
    token.write_text(SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://{userinfo}@127.0.0.1:1/x")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/x")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    said = await refusal(profile)
    assert "QXZ789" not in said
    assert said.startswith("NoCredentials: ")


@pytest.mark.parametrize("where", ["endpoint_url", "services"])
async def test_a_profile_with_a_password_in_its_endpoint(profile: Path, where: str) -> None:
    """A daemon that refuses to start would show it."""
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
def test_errors_that_repeat_something(error: Exception) -> None:
    """What a server answered, or a piece of a URL, would be in the log."""
    assert SECRET not in failure_text(error)
    assert type(error).__name__ in failure_text(error)


def test_errors_that_say_what_is_wrong() -> None:
    """An operator would see a class name where the service said what to do."""
    denied = ClientError(
        {"Error": {"Code": "AccessDenied", "Message": "not authorized to assume x"}}, "AssumeRole"
    )
    assert "not authorized to assume x" in failure_text(denied)
    assert failure_text(LookupError("none")) == "none (LookupError)"
    assert len(failure_text(OSError("x" * 9000))) < 400


def test_an_answer_that_repeats_a_session_token() -> None:
    """A store that quotes what it refuses would put the token into the log."""
    token = "FwoGZXIvYXdzE" + "x/+=" * 60
    said = f"<Error><Code>InvalidToken</Code><Message>bad {token} {SECRET}</Message></Error>"
    answer = Answer(400, (), said.encode(), (SECRET, token))
    assert answer.message == "HTTP 400, bad *** ***"
