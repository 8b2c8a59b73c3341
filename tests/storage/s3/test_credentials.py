"""Keys: those of the settings, those of botocore's chain, and their expiry."""

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


class FakeSession:
    """A session of botocore with a metadata service; ``fetches`` counts the requests to it."""

    def __init__(self) -> None:
        self.fetches = 0
        self.lifetime = timedelta(hours=6)
        self.failure: Exception | None = None
        self.may_answer = threading.Event()
        self.may_answer.set()

    def __call__(self) -> Any:  # noqa: ANN401 - takes the place of a class of botocore's
        """Return the session itself."""
        return self

    def get_credentials(self) -> RefreshableCredentials:
        """Return credentials as botocore makes them from an instance's metadata service."""
        return RefreshableCredentials.create_from_metadata(self.fetch(), self.fetch, "test")

    def fetch(self) -> dict[str, str]:
        """Return new keys, or raise ``failure``."""
        self.may_answer.wait(10)
        self.fetches += 1
        if self.failure is not None:
            raise self.failure
        return {
            "access_key": f"key{self.fetches}",
            "secret_key": "secret",
            "token": "token",
            "expiry_time": (datetime.now(UTC) + self.lifetime).isoformat(),
        }


@pytest.fixture
def source() -> FakeSession:
    """Return a session whose metadata service works."""
    return FakeSession()


async def test_keys_of_the_settings_are_used(make_settings: Callable[..., Settings]) -> None:
    """Uploads would be signed with other keys than the settings have."""
    settings = make_settings(AWS_SESSION_TOKEN="t", AWS_ENDPOINT_URL="http://h:1")
    access = await find_access(settings)

    assert await access.credentials.get() == Keys("key", "secret", "t")
    assert not await access.credentials.renew(Keys("key", "secret", "t"))
    assert (access.configuration.region, access.configuration.endpoint) == (
        "us-east-1",
        "http://h:1",
    )


def test_keys_of_the_settings_need_no_botocore() -> None:
    """Each start would take time and memory for a chain that is not used."""
    code = (
        "import sys, trio\nfrom payloadd.config.settings import load\n"
        "from payloadd.storage.api import *\n"
        "async def main():\n"
        "    async with open_store(load({'STORE_URL': 's3://bucket', 'AWS_REGION': 'r',"
        " 'AWS_ENDPOINT_URL_S3': 'http://127.0.0.1:1',"
        " 'AWS_ACCESS_KEY_ID': 'k', 'AWS_SECRET_ACCESS_KEY': 's'})): pass\n"
        "trio.run(main); print('botocore' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)

    assert done.stdout == "False\n"


async def test_keys_that_cannot_be_sent_in_a_header_stop_the_start(
    make_settings: Callable[..., Settings],
) -> None:
    """A space in a pasted key would be found at the first upload."""
    with pytest.raises(SettingsError, match="AWS_ACCESS_KEY_ID"):
        await find_access(make_settings(AWS_ACCESS_KEY_ID="a b"))


async def test_keys_region_and_endpoint_of_the_profile_are_used(
    make_settings: Callable[..., Settings], no_aws: Path
) -> None:
    """The files that `aws configure` writes would be ignored."""
    (no_aws / "credentials").write_text(
        "[default]\naws_access_key_id = AKIA\naws_secret_access_key = s\n"
    )
    (no_aws / "config").write_text(
        "[default]\nregion = eu-west-3\nservices = local\n"
        "[services local]\ns3 =\n  endpoint_url = http://localhost:9000/\n"
    )
    access = await find_access(make_settings(AWS_REGION="", **NO_KEYS))

    assert await access.credentials.get() == Keys("AKIA", "s", None)
    assert (access.configuration.region, access.configuration.endpoint) == (
        "eu-west-3",
        "http://localhost:9000",
    )


async def test_settings_take_precedence_over_the_profile(
    make_settings: Callable[..., Settings], no_aws: Path
) -> None:
    """AWS_REGION would have no effect."""
    (no_aws / "config").write_text("[default]\nregion = eu-west-3\nendpoint_url = http://x\n")
    access = await find_access(make_settings(AWS_ENDPOINT_URL="http://y", **NO_KEYS))

    assert (access.configuration.region, access.configuration.endpoint) == ("us-east-1", "http://y")


async def test_endpoints_of_the_profile_are_ignored_on_request(
    make_settings: Callable[..., Settings], no_aws: Path
) -> None:
    """The setting ignore_configured_endpoint_urls of AWS would have no effect."""
    (no_aws / "config").write_text(
        "[default]\nendpoint_url = http://x\nignore_configured_endpoint_urls = true\n"
    )

    assert (await find_access(make_settings(AWS_REGION=""))).configuration.endpoint is None


@pytest.mark.parametrize(
    "config", ["[default\nregion", "[default]\nendpoint_url = nonsense\n"], ids=["syntax", "url"]
)
async def test_a_profile_that_cannot_be_read_stops_the_start(
    make_settings: Callable[..., Settings], no_aws: Path, config: str
) -> None:
    """The daemon would start with a part of the configuration."""
    (no_aws / "config").write_text(config)

    with pytest.raises(SettingsError, match="AWS configuration"):
        await find_access(make_settings(**NO_KEYS))


async def test_keys_that_are_added_later_are_used(
    make_settings: Callable[..., Settings], no_aws: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """An operator would have to restart the daemon after adding keys."""
    del autojump_clock
    access: Access = await find_access(make_settings(**NO_KEYS))
    with pytest.raises(OperatorStoreError, match="NoCredentials: none in environment"):
        await access.credentials.get()

    (no_aws / "credentials").write_text(
        "[default]\naws_access_key_id = AKIA\naws_secret_access_key = s\n"
    )
    await trio.sleep(1)

    assert (await access.credentials.get()).access_key == "AKIA"


async def test_many_workers_cause_one_fetch(source: FakeSession, autojump_clock: object) -> None:
    """A thousand workers would overload a metadata service that already fails."""
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
    assert source.fetches == 1


async def test_valid_keys_are_fetched_once(source: FakeSession) -> None:
    """Every object would need a request to the metadata service."""
    credentials = ChainCredentials(source)
    got = set()

    async def worker() -> None:
        got.add((await credentials.get()).access_key)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(worker)
    await worker()

    assert got == {"key1"}
    assert source.fetches == 1


async def test_keys_are_replaced_before_expiry_without_waiting(
    source: FakeSession, autojump_clock: trio.testing.MockClock
) -> None:
    """Uploads would stop each time keys are about to expire."""
    autojump_clock.autojump_threshold = float("inf")
    source.lifetime = timedelta(minutes=5)
    credentials = ChainCredentials(source)
    first = (await credentials.get()).access_key
    autojump_clock.jump(11)
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


async def test_held_keys_are_used_while_a_fetch_fails(
    source: FakeSession, autojump_clock: trio.testing.MockClock
) -> None:
    """A short failure of the metadata service would stop uploads while keys are still valid."""
    autojump_clock.autojump_threshold = float("inf")
    source.lifetime = timedelta(minutes=5)
    credentials = ChainCredentials(source)
    first = await credentials.get()
    fetches = source.fetches
    source.failure = OSError("down")
    autojump_clock.jump(11)

    assert await credentials.get() == first
    assert source.fetches == fetches + 1
    autojump_clock.jump(2)
    assert await credentials.get() == first
    assert source.fetches == fetches + 1, "the source is down, and keys are still valid"


async def test_expired_keys_are_not_used(
    source: FakeSession, autojump_clock: trio.testing.MockClock
) -> None:
    """Requests would be signed with keys that S3 refuses."""
    autojump_clock.autojump_threshold = float("inf")
    source.lifetime = timedelta(seconds=-1)
    credentials = ChainCredentials(source)

    with pytest.raises(OperatorStoreError, match="NoCredentials"):
        await credentials.get()


async def test_keys_that_s3_refuses_are_fetched_again_once(
    source: FakeSession, autojump_clock: trio.testing.MockClock
) -> None:
    """Revoked keys would be used until they expire."""
    autojump_clock.autojump_threshold = float("inf")
    credentials = ChainCredentials(source)
    first = await credentials.get()
    assert not await credentials.renew(first), "fetched a moment ago"
    autojump_clock.jump(2)

    assert await credentials.renew(first)
    assert await credentials.renew(first)
    assert source.fetches == 2
    assert (await credentials.get()).access_key == "key2"


async def test_a_drain_does_not_wait_for_the_metadata_service(source: FakeSession) -> None:
    """A shutdown would hang until a metadata service responds."""
    source.may_answer.clear()
    credentials = ChainCredentials(source)

    async def get_keys() -> None:
        await credentials.get()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(get_keys)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert source.fetches == 0

    async with trio.open_nursery() as nursery:
        nursery.start_soon(get_keys)
        await trio.testing.wait_all_tasks_blocked()
        source.may_answer.set()
    assert (await credentials.get()).access_key == "key1"
    assert source.fetches == 1, "the keys of the abandoned thread are used"


@pytest.mark.parametrize("found", [None, Credentials("key", "")])
async def test_an_access_key_without_a_secret_key_is_not_used(
    found: Credentials | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests would be signed with an empty secret key."""
    session = Session()
    monkeypatch.setattr(session, "get_credentials", lambda: found)

    with pytest.raises(OperatorStoreError, match="NoCredentials"):
        await ChainCredentials(lambda: session).get()


async def test_the_expiry_of_keys_is_known(source: FakeSession) -> None:
    """An operator could not see that the keys are about to expire."""
    credentials = ChainCredentials(source)
    assert credentials.expire() is None
    await credentials.get()
    expected = datetime.now(UTC) + source.lifetime
    assert credentials.expire() == pytest.approx(expected.timestamp(), abs=60)


async def test_keys_that_never_expire_have_no_expiry(
    make_settings: Callable[..., Settings], no_aws: Path
) -> None:
    """An alert about expiry would fire for keys that stay valid."""
    assert (await find_access(make_settings())).credentials.expire() is None
    (no_aws / "credentials").write_text(
        "[default]\naws_access_key_id = AKIA\naws_secret_access_key = s\n"
    )
    credentials = (await find_access(make_settings(**NO_KEYS))).credentials
    await credentials.get()
    assert credentials.expire() is None
