"""Processes that print keys, and profiles that want the code of an MFA device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio
from botocore.session import Session

from payloadd.errors import OperatorStoreError, SettingsError
from payloadd.storage.s3.credential_errors import failure_text
from payloadd.storage.s3.credential_process import MfaRequiredError, ProcessGroups, guard
from payloadd.storage.s3.credentials import ChainCredentials, find_access

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from payloadd.config.settings import Settings

NO_KEYS = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
ROLE = "role_arn = arn:aws:iam::123456789012:role/x\n"
MFA = "mfa_serial = arn:aws:iam::123456789012:mfa/me\n"
DEVICE = "mfa_serial"


def is_running(pid: int) -> bool:
    """Return whether a process exists and has not ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_ended(pid: int) -> None:
    """Wait until a process that was killed has ended."""
    for _ in range(3000):
        if not is_running(pid):
            return
        time.sleep(0.01)
    raise AssertionError(pid)


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Path]:
    """Return a program that starts a child, writes both ids into ``pids``, and hangs."""
    path = tmp_path / "vault-helper"
    path.write_text(
        f"#!{sys.executable}\nimport os, pathlib, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '1000'])\n"
        f"file = pathlib.Path({str(tmp_path / 'new')!r})\n"
        "file.write_text(f'{os.getpid()} {child.pid}')\n"
        f"file.rename({str(tmp_path / 'pids')!r})\n"
        "time.sleep(1000)\n"
    )
    path.chmod(0o700)
    yield path
    for pid in pids_of(path):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def pids_of(program: Path) -> list[int]:
    """Return the ids of the program and its child; none before it has written them."""
    file = program.with_name("pids")
    return [int(text) for text in file.read_text().split()] if file.exists() else []


def profile_session(no_aws: Path, *lines: str) -> Session:
    """Return a session with these lines in its default profile."""
    (no_aws / "config").write_text("[default]\nregion = eu-west-1\n" + "".join(lines))
    return Session()


def test_a_process_that_hangs_is_killed_with_its_children(hanging: Path, no_aws: Path) -> None:
    """A password prompt would hold the source of keys, and its process, for ever."""
    session = profile_session(no_aws, f"credential_process = {hanging} --token secret\n")
    guard(session, ProcessGroups(seconds=3.0))

    with pytest.raises(subprocess.TimeoutExpired) as caught:
        session.get_credentials()
    reason = "credential_process vault-helper did not end within 3 s and was killed"
    assert failure_text(caught.value) == reason
    pids = pids_of(hanging)
    assert len(pids) == 2
    for pid in pids:
        wait_until_ended(pid)


async def test_a_process_that_hangs_ends_with_the_store(hanging: Path, no_aws: Path) -> None:
    """Each restart of the daemon would leave a process behind."""
    session = profile_session(no_aws, f"credential_process = {hanging}\n")
    groups = ProcessGroups()
    guard(session, groups)
    credentials = ChainCredentials(lambda: session, groups)
    with trio.move_on_after(30) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(credentials.get)
            while not pids_of(hanging):  # noqa: ASYNC110 - a file of another process
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert not scope.cancelled_caught
    assert all(is_running(pid) for pid in pids_of(hanging)), "a slow process may still answer"
    credentials.close()

    for pid in pids_of(hanging):
        await trio.to_thread.run_sync(wait_until_ended, pid)
    with pytest.raises(OperatorStoreError, match=r"the store is closed|exit status -9"):
        await credentials.get()


def test_a_process_of_a_source_profile_is_killed_too(hanging: Path, no_aws: Path) -> None:
    """The keys for a role would be fetched by a process without a limit."""
    session = profile_session(
        no_aws, ROLE, "source_profile = other\n[profile other]\n", f"credential_process = {hanging}"
    )
    guard(session, ProcessGroups(seconds=3.0))

    with pytest.raises(subprocess.TimeoutExpired):
        session.get_credentials()
    for pid in pids_of(hanging):
        wait_until_ended(pid)


def test_a_process_that_ends_keeps_the_processes_it_has_started(
    tmp_path: Path, no_aws: Path
) -> None:
    """An agent that a program starts for its next call would be killed."""
    program = tmp_path / "helper"
    program.write_text(
        "#!/bin/sh\nsleep 1000 >/dev/null 2>&1 &\n"
        f"echo $! > {tmp_path}/agent\n"
        'echo \'{"Version": 1, "AccessKeyId": "AK", "SecretAccessKey": "s"}\'\n'
    )
    program.chmod(0o700)
    session = profile_session(no_aws, f"credential_process = {program}\n")
    groups = ProcessGroups()
    guard(session, groups)
    assert session.get_credentials().access_key == "AK"
    groups.close()
    agent = int((tmp_path / "agent").read_text())
    try:
        assert is_running(agent)
    finally:
        os.kill(agent, signal.SIGKILL)


@pytest.mark.parametrize(
    "profile",
    [
        [ROLE, MFA, "source_profile = other\n[profile other]\naws_access_key_id = a\n"],
        [ROLE, "source_profile = b\n[profile b]\n", ROLE, MFA, "source_profile = b\n"],
    ],
    ids=["profile", "source profile"],
)
async def test_a_profile_that_wants_an_mfa_code_is_refused_in_words(
    make_settings: Callable[..., Settings], no_aws: Path, profile: list[str]
) -> None:
    """The daemon would ask for a code on a terminal that it does not have."""
    (no_aws / "config").write_text("[default]\n" + "".join(profile))
    with pytest.raises(SettingsError, match="a daemon cannot enter the code of an MFA device"):
        await find_access(make_settings(**NO_KEYS))

    await find_access(make_settings()), "keys of the settings come first"


@pytest.mark.parametrize(
    "profile",
    [
        [MFA],
        [ROLE, "source_profile = b\n[profile b]\naws_access_key_id = a\n", ROLE, MFA],
        [ROLE, MFA, "web_identity_token_file = /x\n"],
        [ROLE, "source_profile = default\n"],
    ],
    ids=["no role", "keys of the source", "web identity", "its own source"],
)
async def test_a_profile_that_asks_for_no_code_is_used(
    make_settings: Callable[..., Settings], no_aws: Path, profile: list[str]
) -> None:
    """A profile that works in every AWS tool would be refused."""
    (no_aws / "config").write_text("[default]\n" + "".join(profile))
    await find_access(make_settings(**NO_KEYS))


def test_an_mfa_profile_that_appears_later_asks_for_nothing(no_aws: Path) -> None:
    """A file that is changed while the daemon runs would make it read from a terminal."""
    keys = "[profile b]\naws_access_key_id = a\naws_secret_access_key = b\n"
    session = profile_session(no_aws, ROLE, MFA, "source_profile = b\n", keys)
    guard(session, ProcessGroups())

    with pytest.raises(MfaRequiredError) as caught:
        session.get_credentials().get_frozen_credentials()
    assert "mfa/me: a daemon cannot enter the code" in failure_text(caught.value)
