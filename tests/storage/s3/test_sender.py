"""A wrong region, a wrong clock and invalid keys are corrected once a request, and kept."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import structlog.testing
import trio
import trio.testing

from payloadd.config.parsers import S3Url
from payloadd.errors import OperatorStoreError
from payloadd.storage.api import open_store
from payloadd.storage.s3.aws_config import AwsConfiguration
from payloadd.storage.s3.credentials import Access, StaticCredentials
from payloadd.storage.s3.sigv4 import Keys
from payloadd.storage.s3.store import S3Store
from tests.storage.s3.test_errors import xml
from tests.support.faults import STORED, Answer, FaultServer, fault_server, in_turn
from tests.support.objects import MEMBERS, plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.config.settings import Settings
    from payloadd.storage.s3.credentials import Credentials

OBJECT = plain(b'{"a":1}\n')
OK = STORED


class RotatingCredentials:
    """Credentials with new keys after each refusal, ``spare`` times."""

    def __init__(self, spare: int) -> None:
        self.spare = spare
        self.number = 0

    def expire(self) -> float | None:
        """Return None: they do not expire."""
        return None

    def held(self) -> Keys | None:
        """Return None: every request calls ``get``."""
        return None

    async def get(self) -> Keys:
        """Return the current keys."""
        return Keys(f"key{self.number}", "secret", "token")

    async def renew(self, refused: Keys) -> bool:
        """Switch to the next keys, if there are any."""
        if self.number < self.spare and refused == await self.get():
            self.number += 1
        return refused != await self.get()

    async def reload(self) -> bool:
        """Switch to the next keys, if there are any."""
        return await self.renew(await self.get())

    def close(self) -> None:
        """Do nothing: there is no process."""


def store_at(
    server: FaultServer, settings: Settings, credentials: Credentials, clock: Callable[[], float]
) -> S3Store:
    """Return a store with the test's own credentials and clock."""
    access = Access(credentials, AwsConfiguration(region="us-east-1", endpoint=server.url))
    return S3Store(settings, S3Url("bucket", "p"), access, clock=clock)


STATIC = StaticCredentials(Keys("key", "secret"))


@pytest.mark.parametrize(
    "refusal",
    [
        Answer(301, xml("PermanentRedirect"), {"x-amz-bucket-region": "eu-west-3"}),
        Answer(307, b"", {"x-amz-bucket-region": "eu-west-3", "location": "http://127.0.0.1:1/"}),
        Answer(400, xml("AuthorizationHeaderMalformed", "<Region>eu-west-3</Region>")),
    ],
)
async def test_a_wrong_region_is_corrected_and_kept(
    make_settings: Callable[..., Settings], refusal: Answer
) -> None:
    """A bucket in another region than AWS_REGION could not be used."""
    async with (
        fault_server(in_turn(refusal, OK)) as server,
        open_store(make_settings(AWS_ENDPOINT_URL=server.url)) as store,
    ):
        await store.put("k", OBJECT, MEMBERS, repeat=False)
        await store.put("k", OBJECT, MEMBERS, repeat=False)

    regions = [one.headers["authorization"].split("/")[2] for one in server.requests]
    assert regions == ["us-east-1", "eu-west-3", "eu-west-3"]


async def test_each_correction_is_made_once_in_a_put(
    make_settings: Callable[..., Settings],
) -> None:
    """Two servers that redirect to each other would occupy a worker for ever."""

    def fickle(_request: object) -> Answer:
        there = f"region-{len(server.requests)}"
        return Answer(301, xml("PermanentRedirect"), {"x-amz-bucket-region": there})

    async with (
        fault_server(fickle) as server,
        open_store(make_settings(AWS_ENDPOINT_URL=server.url)) as store,
    ):
        with pytest.raises(OperatorStoreError, match="PermanentRedirect"):
            await store.put("k", OBJECT, MEMBERS, repeat=False)

    assert len(server.requests) == 2


@pytest.mark.parametrize("ahead", [-7200.0, 86400.0])
async def test_a_wrong_clock_is_corrected_and_kept(
    make_settings: Callable[..., Settings], ahead: float
) -> None:
    """A machine with a wrong clock could store nothing."""
    wrong = time.time() + ahead
    skewed = Answer(
        403, xml("RequestTimeTooSkewed", "<ServerTime>2026-03-04T05:06:07Z</ServerTime>")
    )
    async with fault_server(in_turn(skewed, OK)) as server:
        store = store_at(server, make_settings(), STATIC, lambda: wrong)
        await store.put("k", OBJECT, MEMBERS, repeat=False)
        await store.put("k", OBJECT, MEMBERS, repeat=False)
        await store.aclose()

    stamps = [one.headers["x-amz-date"] for one in server.requests]
    assert stamps[1:] == ["20260304T050607Z"] * 2
    assert stamps[0] != stamps[1]


@pytest.mark.parametrize("date", [{}, {"date": "Thu, 01 Jan 1970 00:01:00 GMT"}])
async def test_a_right_clock_is_not_corrected(
    make_settings: Callable[..., Settings], date: dict[str, str]
) -> None:
    """A server with a wrong clock would make the daemon send the same request for ever."""
    async with fault_server(in_turn(Answer(403, xml("RequestTimeTooSkewed"), date))) as server:
        store = store_at(server, make_settings(), STATIC, lambda: 60.0)
        with pytest.raises(OperatorStoreError, match="RequestTimeTooSkewed"):
            await store.put("k", OBJECT, MEMBERS, repeat=False)
        await store.aclose()

    assert len(server.requests) == 1


async def test_expired_keys_are_renewed(make_settings: Callable[..., Settings]) -> None:
    """Uploads would stop for ever when the first session token expires."""
    expired = Answer(400, xml("ExpiredToken"))
    async with fault_server(in_turn(expired, OK)) as server:
        store = store_at(server, make_settings(), RotatingCredentials(1), time.time)
        await store.put("k", OBJECT, MEMBERS, repeat=False)
        server.script = in_turn(expired)
        with pytest.raises(OperatorStoreError, match="ExpiredToken"):
            await store.put("k", OBJECT, MEMBERS, repeat=False)
        await store.aclose()

    used = [one.headers["authorization"].split("/")[0][-4:] for one in server.requests]
    assert used == ["key0", "key1", "key1"]


async def test_region_clock_and_keys_are_corrected_in_one_put(
    make_settings: Callable[..., Settings],
) -> None:
    """A new machine with several wrong settings would need several attempts for an object."""
    script = in_turn(
        Answer(400, xml("AuthorizationHeaderMalformed", "<Region>eu-west-3</Region>")),
        Answer(403, xml("RequestTimeTooSkewed"), {"date": "Thu, 01 Jan 1970 01:00:00 GMT"}),
        Answer(400, xml("ExpiredToken")),
        OK,
    )
    async with fault_server(script) as server:
        store = store_at(server, make_settings(), RotatingCredentials(1), lambda: 0.0)
        await store.put("k", OBJECT, MEMBERS, repeat=False)
        await store.aclose()

    assert server.requests[-1].headers["x-amz-date"] == "19700101T010000Z"


async def test_a_source_of_keys_that_hangs_is_an_operator_error(
    make_settings: Callable[..., Settings], autojump_clock: object
) -> None:
    """A metadata service that hangs would occupy every worker for ever, without a reason."""
    del autojump_clock

    class HangingCredentials(RotatingCredentials):
        async def get(self) -> Keys:
            await trio.sleep_forever()

    server = FaultServer(9, in_turn(OK))
    store = store_at(server, make_settings(), HangingCredentials(0), time.time)
    start = trio.current_time()
    with pytest.raises(OperatorStoreError, match="NoCredentials"):
        await store.put("k", OBJECT, MEMBERS, repeat=False)
    # After ten seconds the store would be reported as the cause.
    assert trio.current_time() - start < 10
    await store.aclose()


async def test_missing_keys_are_an_operator_error(
    make_settings: Callable[..., Settings], no_aws: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing key would lose payloads instead of being reported."""
    del no_aws
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    settings = make_settings(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
    async with open_store(settings) as store:
        with pytest.raises(OperatorStoreError, match="NoCredentials"):
            await store.put("k", OBJECT, MEMBERS, repeat=False)


async def test_the_identity_hides_all_but_four_characters_of_the_access_key(
    make_settings: Callable[..., Settings],
) -> None:
    """`payloadd check` would not show which keys it uses, or would show them whole."""
    async with open_store(make_settings(AWS_ACCESS_KEY_ID="AKIAIOSFODNN7EXAMPLE")) as store:
        assert await store.identify() == "access key ****MPLE, region us-east-1"


async def test_what_answers_teach_is_logged_once_and_listed(
    make_settings: Callable[..., Settings],
) -> None:
    """An operator would not see that a setting or the machine's clock is wrong."""
    script = in_turn(
        Answer(400, xml("AuthorizationHeaderMalformed", "<Region>eu-west-3</Region>")),
        Answer(403, xml("RequestTimeTooSkewed"), {"date": "Thu, 01 Jan 1970 01:00:00 GMT"}),
        OK,
    )
    with structlog.testing.capture_logs() as lines:
        async with fault_server(script) as server:
            store = store_at(server, make_settings(), STATIC, lambda: 0.0)
            for _ in range(3):
                await store.put("k", OBJECT, MEMBERS, repeat=False)
            await store.aclose()

    assert [(line["event"], line["what"]) for line in lines] == [
        ("store_learnt", "region"),
        ("store_learnt", "clock"),
    ]
    assert store.learnt() == [
        "region: eu-west-3, not us-east-1; set AWS_REGION=eu-west-3",
        "clock: the store's is 3600 s ahead of this machine's",
    ]
