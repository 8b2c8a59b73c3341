"""The creation of a bucket; ``tests/cli/test_check.py`` creates some on real servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from payloadd.errors import OperatorStoreError
from payloadd.storage.api import open_store
from tests.support.store import Refusal, fake_s3
from tests.support.store_behaviours import PORTAL, InTurn

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.config.settings import Settings
    from tests.support.store_behaviours import Behaviour

UNKNOWN_REGION = Refusal(400, "InvalidLocationConstraint")


async def created(
    make_settings: Callable[..., Settings], behaviour: Behaviour, **settings: str
) -> tuple[bool, list[bytes]]:
    """Return the result of ``create``, and the bodies that the server kept."""
    async with fake_s3(behaviour) as server:
        async with open_store(make_settings(**{**server.environ, **settings})) as store:
            missing = await store.create()
        return missing, list(server.objects.values())


async def test_the_default_region_is_not_named(make_settings: Callable[..., Settings]) -> None:
    """AWS refuses a bucket in its default region if the request names it."""
    assert await created(make_settings, "take") == (True, [b""])


async def test_another_region_is_named(make_settings: Callable[..., Settings]) -> None:
    """The bucket would be in another region than the daemon's."""
    missing, (body,) = await created(make_settings, "take", AWS_REGION="eu-west-3")
    assert missing
    assert b"<LocationConstraint>eu-west-3</LocationConstraint>" in body


async def test_a_server_that_has_no_such_region_is_asked_without(
    make_settings: Callable[..., Settings],
) -> None:
    """`--create` would fail with servers that have no regions."""
    behaviour = InTurn((UNKNOWN_REGION, "take"))
    assert await created(make_settings, behaviour, AWS_REGION="garage") == (True, [b""])


async def test_a_bucket_of_the_same_account_is_no_error(
    make_settings: Callable[..., Settings],
) -> None:
    """`check --create` would fail if two of them run at the same time."""
    behaviour = Refusal(409, "BucketAlreadyOwnedByYou")
    assert await created(make_settings, behaviour) == (False, [])


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        (PORTAL, "NOT_S3"),
        (Refusal(409, "BucketAlreadyExists"), "BucketAlreadyExists"),
        (Refusal(403, "AccessDenied"), "AccessDenied"),
    ],
)
async def test_a_refusal_is_named(
    make_settings: Callable[..., Settings], behaviour: Behaviour, code: str
) -> None:
    """An operator would believe in a bucket that is not there, or is another account's."""
    async with fake_s3(behaviour) as server, open_store(make_settings(**server.environ)) as store:
        with pytest.raises(OperatorStoreError) as caught:
            await store.create()
    assert caught.value.code == code
