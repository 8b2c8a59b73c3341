"""Keys: static, from botocore's chain, and when they run out."""

from __future__ import annotations

import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from botocore.credentials import Credentials, RefreshableCredentials
from botocore.session import Session

from payloadd.errors import OperatorStoreError, SettingsError
from payloadd.storage.s3.credentials import Access, ChainCredentials, find_access
from payloadd.storage.s3.sigv4 import Keys

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from payloadd.config.settings import Settings

NO_KEYS = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}


class Source:
    """A botocore session, and the metadata service behind it."""

    def __init__(self) -> None:
        self.asked = 0
        self.lifetime = timedelta(hours=6)
        self.failure: Exception | None = None
        self.may_answer = threading.Event()
        self.may_answer.set()

    def __call__(self) -> Any:  # noqa: ANN401 - takes the place of a class of botocore's
        """Return a session; it is its own."""
        return self

    def get_credentials(self) -> RefreshableCredentials:
        """Return credentials as an instance's metadata service gives them."""
        return RefreshableCredentials.create_from_metadata(self.fetch(), self.fetch, "test")

    def fetch(self) -> dict[str, str]:
        """Return new keys, or fail."""
        self.may_answer.wait(10)
        self.asked += 1
        if self.failure is not None:
            raise self.failure
        return {
            "access_key": f"key{self.asked}",
            "secret_key": "secret",
            "token": "token",
            "expiry_time": (datetime.now(UTC) + self.lifetime).isoformat(),
        }


@pytest.fixture
def source() -> Source:
    """Return a source that works."""
    return Source()


async def test_keys_of_the_settings(make_settings: Callable[..., Settings]) -> None:
    """Keys that were set would not be used."""
    settings = make_settings(AWS_SESSION_TOKEN="t", AWS_ENDPOINT_URL="http://h:1")
    access = await find_access(settings)

    assert await access.credentials.get() == Keys("key", "secret", "t")
    assert not await access.credentials.renew(Keys("key", "secret", "t"))
    assert (access.region, access.endpoint) == ("us-east-1", "http://h:1")


def test_static_keys_do_without_botocore() -> None:
    """Every small installation would pay half a second and 20 MB for a chain it does not use."""
    code = (
        "import sys, trio\nfrom payloadd.config.settings import load\n"
        "from payloadd.storage.api import *\n"
        "async def main():\n"
        "    async with open_store(load({'STORE_URL': 's3://bucket', 'AWS_REGION': 'r',"
        " 'AWS_ACCESS_KEY_ID': 'k', 'AWS_SECRET_ACCESS_KEY': 's'})): pass\n"
        "trio.run(main); print('botocore' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert done.stdout == "False\n"


async def test_keys_that_no_header_can_carry(make_settings: Callable[..., Settings]) -> None:
    """A key pasted with a blank would be found out at the first payload."""
    with pytest.raises(SettingsError, match="AWS_ACCESS_KEY_ID"):
        await find_access(make_settings(AWS_ACCESS_KEY_ID="a b"))


async def test_the_profile(make_settings: Callable[..., Settings], no_aws: Path) -> None:
    """What `aws configure` wrote would not be used."""
    (no_aws / "credentials").write_text(
        "[default]\naws_access_key_id = AKIA\naws_secret_access_key = s\n"
    )
    (no_aws / "config").write_text(
        "[default]\nregion = eu-west-3\nservices = local\n"
        "[services local]\ns3 =\n  endpoint_url = http://localhost:9000/\n"
    )
    access = await find_access(make_settings(AWS_REGION="", **NO_KEYS))

    assert await access.credentials.get() == Keys("AKIA", "s", None)
    assert (access.region, access.endpoint) == ("eu-west-3", "http://localhost:9000")


async def test_the_settings_win_over_the_profile(
    make_settings: Callable[..., Settings], no_aws: Path
) -> None:
    """AWS_REGION would not do what it says."""
    (no_aws / "config").write_text("[default]\nregion = eu-west-3\nendpoint_url = http://x\n")
    access = await find_access(make_settings(AWS_ENDPOINT_URL="http://y", **NO_KEYS))

    assert (access.region, access.endpoint) == ("us-east-1", "http://y")


async def test_endpoints_of_the_profile_can_be_ignored(
    make_settings: Callable[..., Settings], no_aws: Path
) -> None:
    """AWS's own switch would not work here."""
    (no_aws / "config").write_text(
        "[default]\nendpoint_url = http://x\nignore_configured_endpoint_urls = true\n"
    )

    assert (await find_access(make_settings(AWS_REGION=""))).endpoint is None


@pytest.mark.parametrize(
    "config", ["[default\nregion", "[default]\nendpoint_url = nonsense\n"], ids=["syntax", "url"]
)
async def test_a_profile_that_cannot_be_read(
    make_settings: Callable[..., Settings], no_aws: Path, config: str
) -> None:
    """The daemon would start with half a configuration."""
    (no_aws / "config").write_text(config)

    with pytest.raises(SettingsError, match="AWS configuration"):
        await find_access(make_settings(**NO_KEYS))


async def test_keys_that_are_added_later(
    make_settings: Callable[..., Settings], no_aws: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """An operator who adds the keys would have to restart the daemon."""
    del autojump_clock
    access: Access = await find_access(make_settings(**NO_KEYS))
    with pytest.raises(OperatorStoreError, match="NoCredentials: none in environment"):
        await access.credentials.get()

    (no_aws / "credentials").write_text(
        "[default]\naws_access_key_id = AKIA\naws_secret_access_key = s\n"
    )
    await trio.sleep(1)

    assert (await access.credentials.get()).access_key == "AKIA"


async def test_many_workers_ask_once(source: Source, autojump_clock: object) -> None:
    """A thousand workers would flood a metadata service that is down already."""
    del autojump_clock
    source.failure = OSError("no route to the metadata service")
    credentials = ChainCredentials(source)
    failures = []

    async def worker() -> None:
        try:
            await credentials.get()
        except OperatorStoreError as error:
            failures.append(str(error))

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(worker)

    assert failures == ["NoCredentials: no route to the metadata service (OSError)"] * 50
    assert source.asked == 1


async def test_keys_are_kept_while_they_hold(source: Source) -> None:
    """Every object would cost a round trip to the metadata service."""
    credentials = ChainCredentials(source)
    got = set()

    async def worker() -> None:
        got.add((await credentials.get()).access_key)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(worker)
    await worker()

    assert got == {"key1"}
    assert source.asked == 1


async def test_keys_are_replaced_ahead_and_nobody_waits(
    source: Source, autojump_clock: trio.testing.MockClock
) -> None:
    """Uploads would stop each time the keys near their end."""
    autojump_clock.autojump_threshold = float("inf")
    source.lifetime = timedelta(minutes=5)
    credentials = ChainCredentials(source)
    first = (await credentials.get()).access_key
    autojump_clock.jump(2)
    source.lifetime = timedelta(hours=1)
    source.may_answer.clear()
    got: list[str] = []

    async def replacing() -> None:
        got.append((await credentials.get()).access_key)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(replacing)
        await trio.testing.wait_all_tasks_blocked()
        assert (await credentials.get()).access_key == first
        assert got == []
        source.may_answer.set()

    assert got
    assert got != [first]


async def test_old_keys_are_used_while_new_ones_cannot_be_had(
    source: Source, autojump_clock: trio.testing.MockClock
) -> None:
    """A hiccup of the metadata service would stop uploads that could go on for minutes."""
    autojump_clock.autojump_threshold = float("inf")
    source.lifetime = timedelta(minutes=5)
    credentials = ChainCredentials(source)
    first = await credentials.get()
    asked = source.asked
    source.failure = OSError("down")
    autojump_clock.jump(2)

    assert await credentials.get() == first
    assert source.asked == asked + 1


async def test_expired_keys_are_not_used(
    source: Source, autojump_clock: trio.testing.MockClock
) -> None:
    """S3 would be asked with keys that it must refuse."""
    autojump_clock.autojump_threshold = float("inf")
    source.lifetime = timedelta(seconds=-1)
    credentials = ChainCredentials(source)

    with pytest.raises(OperatorStoreError, match="NoCredentials"):
        await credentials.get()


async def test_keys_that_s3_refuses_are_replaced_once(
    source: Source, autojump_clock: trio.testing.MockClock
) -> None:
    """Keys that were revoked early would be used until their end."""
    autojump_clock.autojump_threshold = float("inf")
    credentials = ChainCredentials(source)
    first = await credentials.get()
    assert not await credentials.renew(first), "asked a moment ago"
    autojump_clock.jump(2)

    assert await credentials.renew(first)
    assert await credentials.renew(first)
    assert source.asked == 2
    assert (await credentials.get()).access_key == "key2"


async def test_a_drain_does_not_wait_for_the_metadata_service(source: Source) -> None:
    """SIGTERM would hang for as long as a metadata service does not answer."""
    source.may_answer.clear()
    credentials = ChainCredentials(source)

    async def asking() -> None:
        await credentials.get()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(asking)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert source.asked == 0

    async with trio.open_nursery() as nursery:
        nursery.start_soon(asking)
        await trio.testing.wait_all_tasks_blocked()
        source.may_answer.set()
    assert (await credentials.get()).access_key == "key1"
    assert source.asked == 1, "what the abandoned thread brought is used"


@pytest.mark.parametrize("found", [None, Credentials("key", "")])
async def test_a_source_without_a_whole_pair(
    found: Credentials | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests would be signed with half a pair of keys."""
    session = Session()
    monkeypatch.setattr(session, "get_credentials", lambda: found)

    with pytest.raises(OperatorStoreError, match="NoCredentials"):
        await ChainCredentials(lambda: session).get()
