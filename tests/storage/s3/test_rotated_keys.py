"""Keys that an operator replaces while the daemon runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from payloadd.errors import OperatorStoreError
from payloadd.storage.api import open_store
from payloadd.storage.s3.credentials import (
    RefusalLimit,
    StaticCredentials,
    _keys_of_files,
    find_access,
)
from payloadd.storage.s3.sigv4 import Keys
from tests.support.faults import Answer, Request, fault_server
from tests.support.objects import MEMBERS, plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from payloadd.config.settings import Settings

OBJECT = plain(b"{}\n")
NO_KEYS = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
OLD, NEW = Keys("OLD", "s"), Keys("NEW", "s")
STORED = Answer(200, headers={"etag": '"0"'})


class CountingCredentials:
    """Credentials that count how often they are asked for other keys."""

    def __init__(self) -> None:
        self.keys = OLD
        self.next = OLD
        self.reloads = 0

    def expire(self) -> float | None:
        """Return None: they do not expire."""
        return None

    def held(self) -> Keys:
        """Return the keys."""
        return self.keys

    async def get(self) -> Keys:
        """Return the keys."""
        return self.keys

    async def renew(self, refused: Keys) -> bool:
        """Return whether other keys are held."""
        return self.keys != refused

    async def reload(self) -> bool:
        """Switch to the next keys."""
        self.reloads += 1
        before, self.keys = self.keys, self.next
        return self.keys != before

    def close(self) -> None:
        """Do nothing: there is no process."""


def write_keys(no_aws: Path, access_key: str) -> None:
    """Write a shared credentials file."""
    (no_aws / "credentials").write_text(
        f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = s\n"
    )


def only(access_key: str, code: str) -> Callable[[Request], Answer]:
    """Return a server's script that refuses every other access key with this code."""

    def script(request: Request) -> Answer:
        if f"Credential={access_key}/" in request.headers["authorization"]:
            return STORED
        return Answer(403, f"<Error><Code>{code}</Code></Error>".encode())

    return script


@pytest.mark.parametrize(
    "code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AccessDenied"]
)
async def test_a_file_of_keys_is_read_again_when_s3_refuses_its_keys(
    make_settings: Callable[..., Settings], no_aws: Path, code: str
) -> None:
    """Rotated keys would need a restart of every daemon."""
    await trio.to_thread.run_sync(write_keys, no_aws, "OLD")
    async with (
        fault_server(only("OLD", code)) as server,
        open_store(make_settings(AWS_ENDPOINT_URL=server.url, **NO_KEYS)) as store,
    ):
        await store.put("a", OBJECT, MEMBERS, repeat=False)
        await trio.to_thread.run_sync(write_keys, no_aws, "NEW")
        server.script = only("NEW", code)
        await store.put("b", OBJECT, MEMBERS, repeat=False)

    assert len(server.requests) == 3


async def test_other_refusals_do_not_read_the_file_again(
    make_settings: Callable[..., Settings], no_aws: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """A bucket that is missing would make the daemon ask STS again and again."""
    autojump_clock.autojump_threshold = float("inf")
    await trio.to_thread.run_sync(write_keys, no_aws, "OLD")
    async with (
        fault_server(only("NEW", "NoSuchBucket")) as server,
        open_store(make_settings(AWS_ENDPOINT_URL=server.url, **NO_KEYS)) as store,
    ):
        with pytest.raises(OperatorStoreError):
            await store.put("a", OBJECT, MEMBERS, repeat=False)
        await trio.to_thread.run_sync(write_keys, no_aws, "NEW")
        autojump_clock.jump(2)
        with pytest.raises(OperatorStoreError):
            await store.put("a", OBJECT, MEMBERS, repeat=False)


async def test_refused_keys_are_fetched_again_every_ten_seconds_at_most(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A bucket policy that denies every upload would make the daemon flood STS."""
    del autojump_clock
    credentials = CountingCredentials()
    limit = RefusalLimit(credentials)
    for _ in range(100):
        assert not await limit.renew(OLD)
        await trio.sleep(0.3)

    assert credentials.reloads == 3


async def test_keys_that_another_upload_has_renewed_are_used_at_once() -> None:
    """64 uploads that fail together would wait for 10 s although the next keys are there."""
    credentials = CountingCredentials()
    limit = RefusalLimit(credentials)
    credentials.next = NEW

    assert await limit.renew(OLD)
    assert await limit.renew(OLD)
    assert credentials.reloads == 1


async def test_a_reload_reads_the_file_of_keys_again(
    make_settings: Callable[..., Settings], no_aws: Path
) -> None:
    """After SIGHUP an operator could not be sure that the next keys are in use."""
    await trio.to_thread.run_sync(write_keys, no_aws, "OLD")
    async with (
        fault_server(lambda _: STORED) as server,
        open_store(make_settings(AWS_ENDPOINT_URL=server.url, **NO_KEYS)) as store,
    ):
        await store.put("a", OBJECT, MEMBERS, repeat=False)
        await trio.to_thread.run_sync(write_keys, no_aws, "NEW")
        await store.reload()
        await store.put("b", OBJECT, MEMBERS, repeat=False)

    used = [request.headers["authorization"] for request in server.requests]
    assert ["Credential=OLD/" in used[0], "Credential=NEW/" in used[1]] == [True, True]


async def test_keys_in_the_credentials_directory_are_read_again(
    make_settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys that a unit passes as files would need a restart."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "aws_access_key_id").write_text("OLD\n")
    (tmp_path / "aws_secret_access_key").write_text("s\n")
    settings = make_settings(
        CREDENTIALS_DIRECTORY=str(tmp_path), AWS_ENDPOINT_URL="http://127.0.0.1:1"
    )
    credentials = (await find_access(settings)).credentials
    assert await credentials.get() == OLD
    assert not await credentials.renew(OLD)
    (tmp_path / "aws_access_key_id").write_text("NEW\n")

    assert await credentials.renew(OLD)
    assert await credentials.get() == NEW


@pytest.mark.parametrize("access_key", ["", "a b"])
async def test_keys_that_cannot_be_used_do_not_replace_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, access_key: str
) -> None:
    """A file that is being written would stop uploads."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "aws_access_key_id").write_text(access_key)
    (tmp_path / "aws_secret_access_key").write_text("s")
    credentials = StaticCredentials(OLD, _keys_of_files)

    assert not await credentials.renew(OLD)
    assert credentials.held() == OLD
