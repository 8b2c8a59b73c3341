"""The rules of ``payloadd.storage.api.Store``, checked against every store.

To add a store: write a :class:`Target` in ``targets.py``, a fixture that returns it, and add its
name to ``TARGETS``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
import trio

from payloadd.errors import InvalidObjectError, OperatorStoreError, StoreError, TransientStoreError
from payloadd.storage.api import open_store
from tests.storage import targets
from tests.storage.targets import Bucket, Folder, Target
from tests.support.objects import MEMBERS, bytes_of, gzipped, plain

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from payloadd.config.settings import Settings
    from payloadd.model.formats.api import EncodedObject
    from payloadd.storage.api import Store
    from tests.support.s3 import S3Server

_EARLY: Final = 0.3
"""Seconds in which a store that does not wait for a confirmation has returned."""
_READERS: Final = 2
_REPLACEMENTS: Final = 5

OBJECT = plain(b'{"a":"\xc3\xbc"}\n')
LARGE = plain(*[bytes(range(256)) * 4096] * 9)
# No backslash: SeaweedFS reads it as a slash.
KEYS = ["plain.ndjson", "a/b c+d&e=f?g#h%41.ndjson", "größe/日本/🎈", "~(*)'!,;:@$", '"<>|^`{}']
TARGETS = ["folder", "moto_bucket", "seaweed_bucket"]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Return a new folder."""
    return Folder(tmp_path / "objects")


@pytest.fixture
def moto_bucket(moto: S3Server, bucket_name: str, make_settings: Callable[..., Settings]) -> Bucket:
    """Return a new bucket on moto's server."""
    return Bucket(moto, bucket_name, make_settings)


@pytest.fixture
def seaweed_bucket(
    seaweed: S3Server, bucket_name: str, make_settings: Callable[..., Settings]
) -> Bucket:
    """Return a new bucket on SeaweedFS."""
    return Bucket(seaweed, bucket_name, make_settings)


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    """Return a place for each store in turn."""
    found: Target = request.getfixturevalue(request.param)
    return found


async def objects_of(target: Target) -> dict[str, bytes]:
    """Return every object of a target without blocking the event loop."""
    return await trio.to_thread.run_sync(target.objects)


async def put_all(store: Store, bodies: dict[str, EncodedObject]) -> None:
    """Put objects one after the other."""
    for key, body in bodies.items():
        await store.put(key, body, MEMBERS, repeat=False)


async def test_objects_are_stored_under_their_keys(target: Target) -> None:
    """Objects would be refused, or stored under other keys."""
    async with open_store(target.settings) as store:
        await put_all(store, dict.fromkeys(KEYS, OBJECT))
    assert await objects_of(target) == dict.fromkeys(KEYS, bytes_of(OBJECT))


async def test_a_second_put_of_the_same_object_changes_nothing(target: Target) -> None:
    """A replay after a crash would store payloads twice, or fail for ever."""
    async with open_store(target.settings) as store:
        for _ in range(2):
            await store.put("day/a", OBJECT, MEMBERS, repeat=False)
    assert await objects_of(target) == {"day/a": bytes_of(OBJECT)}


async def test_an_object_with_the_same_key_is_replaced(target: Target) -> None:
    """An object that is encoded again would be mixed with its earlier bytes, or refused."""
    async with open_store(target.settings) as store:
        for body in (LARGE, OBJECT, gzipped(b"\x1f\x8b", b"...")):
            await store.put("a", body, MEMBERS, repeat=False)
            assert await objects_of(target) == {"a": bytes_of(body)}


async def test_an_object_that_is_no_batch_replaces_any_other(target: Target) -> None:
    """A watermark would be refused, or keep its first value."""
    async with open_store(target.settings) as store:
        await store.put("w.json", LARGE, MEMBERS, repeat=False)
        for body in (plain(b"1\n"), plain(b"2\n")):
            await store.replace("w.json", body)
            assert await objects_of(target) == {"w.json": bytes_of(body)}


@pytest.mark.parametrize(
    "body",
    [plain(), plain(b""), LARGE, plain(*[b"%d\n" % index for index in range(3000)])],
    ids=["no-pieces", "empty", "9-MiB", "more-pieces-than-one-system-call-takes"],
)
async def test_bodies_of_any_size_are_stored_whole(target: Target, body: EncodedObject) -> None:
    """A full batch would be refused or cut."""
    async with open_store(target.settings) as store:
        await store.put("a", body, MEMBERS, repeat=False)
    assert await objects_of(target) == {"a": bytes_of(body)}


async def test_a_deleted_object_is_gone(target: Target) -> None:
    """`payloadd check` would leave its probe, or fail if the probe is already deleted."""
    async with open_store(target.settings) as store:
        await put_all(store, {"x/probe": OBJECT, "x/other": OBJECT})
        for _ in range(2):
            await store.delete("x/probe")
    assert await objects_of(target) == {"x/other": bytes_of(OBJECT)}


async def test_the_identity_is_one_line_without_secrets(target: Target) -> None:
    """`payloadd check` would not show the identity, or would show a secret."""
    async with open_store(target.settings) as store:
        identity = await store.identify()
    assert identity
    assert identity.isprintable()
    assert not any(secret in identity for secret in target.secrets)


async def test_puts_at_the_same_time_do_not_disturb_each_other(target: Target) -> None:
    """Workers would overwrite or mix each other's objects."""
    bodies = {f"{index:03}": plain(b"%d\n" % index) for index in range(100)}
    left = iter(bodies.items())
    async with open_store(target.settings) as store:

        async def worker() -> None:
            for key, body in left:
                await store.put(key, body, MEMBERS, repeat=False)

        async with trio.open_nursery() as nursery:
            for _ in range(32):
                nursery.start_soon(worker)
    assert await objects_of(target) == {key: bytes_of(body) for key, body in bodies.items()}


async def test_a_put_returns_after_its_confirmation_and_can_be_cancelled(target: Target) -> None:
    """Payloads would be deleted that no store has, or a drain would hang."""
    with target.without_confirmation() as unconfirmed, trio.fail_after(targets.TEST_TIMEOUT):
        async with open_store(unconfirmed.settings) as store, trio.open_nursery() as nursery:
            cancelled = trio.CancelScope()
            returned = trio.Event()

            async def put() -> None:
                with cancelled:
                    await store.put("a", OBJECT, MEMBERS, repeat=False)
                    returned.set()

            unconfirmed.hold()
            nursery.start_soon(put)
            with trio.move_on_after(_EARLY):
                await returned.wait()
            assert not returned.is_set(), "returned before the store has confirmed"
            cancelled.cancel()
            unconfirmed.release()
            start = trio.current_time()
        assert trio.current_time() - start < targets.TEST_TIMEOUT, "ignored its cancellation"


# moto's server answers a read with 500 while it replaces the object.
@pytest.mark.parametrize("target", [one for one in TARGETS if "moto" not in one], indirect=True)
async def test_an_object_is_replaced_at_once(target: Target) -> None:
    """A reader would get a part of an object."""
    whole = {bytes_of(OBJECT), bytes_of(LARGE)}
    found = []
    async with open_store(target.settings) as store, trio.open_nursery() as nursery:
        await store.put("a", OBJECT, MEMBERS, repeat=False)

        async def read() -> None:
            while True:
                found.append((await objects_of(target)).get("a"))

        for _ in range(_READERS):
            nursery.start_soon(read)
        for _ in range(_REPLACEMENTS):
            for body in (LARGE, OBJECT):
                await store.put("a", body, MEMBERS, repeat=False)
        nursery.cancel_scope.cancel()
    assert found
    assert set(found) <= whole, "a part of an object"


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.01, 0.05])
async def test_a_cancelled_put_leaves_no_part_of_an_object(target: Target, seconds: float) -> None:
    """A reader would get half of an object, and the next attempt could fail because of it."""
    async with open_store(target.settings) as store:
        await store.put("old", OBJECT, MEMBERS, repeat=False)
        async with trio.open_nursery() as nursery:
            for key in ("old", "new"):
                nursery.start_soon(partial(store.put, key, LARGE, MEMBERS, repeat=False))
            await trio.sleep(seconds)
            nursery.cancel_scope.cancel()
        found = await objects_of(target)
        assert found.pop("old") in (bytes_of(OBJECT), bytes_of(LARGE))
        assert found in ({}, {"new": bytes_of(LARGE)})
        await put_all(store, dict.fromkeys(("old", "new"), LARGE))
    assert await objects_of(target) == dict.fromkeys(("old", "new"), bytes_of(LARGE))


async def test_a_short_failure_is_transient(target: Target) -> None:
    """A store that fails for a moment would stop the pipeline, or lose payloads."""
    with target.broken_for_a_moment() as settings:
        async with open_store(settings) as store:
            with pytest.raises(TransientStoreError):
                await store.put("day/a", OBJECT, MEMBERS, repeat=False)
    async with open_store(target.settings) as store:
        await store.put("day/a", OBJECT, MEMBERS, repeat=False)
    assert await objects_of(target) == {"day/a": bytes_of(OBJECT)}


async def test_a_missing_place_waits_for_the_operator(target: Target) -> None:
    """Payloads would be dropped because of a bucket or a disk that an operator can restore."""
    async with open_store(target.settings) as store:
        await trio.to_thread.run_sync(target.remove)
        for _ in range(2):
            with pytest.raises(OperatorStoreError):
                await store.put("day/a", OBJECT, MEMBERS, repeat=False)
        await trio.to_thread.run_sync(target.restore)
        await store.put("day/a", OBJECT, MEMBERS, repeat=False)
    assert await objects_of(target) == {"day/a": bytes_of(OBJECT)}


async def test_a_missing_place_is_created(target: Target) -> None:
    """`payloadd check --create` would leave the work to the operator."""
    async with open_store(target.settings) as store:
        await trio.to_thread.run_sync(target.remove)
        assert await store.create()
        await store.put("day/a", OBJECT, MEMBERS, repeat=False)
    assert await objects_of(target) == {"day/a": bytes_of(OBJECT)}


async def test_a_key_that_is_not_text_makes_a_dead_letter(target: Target) -> None:
    """An object that no store can accept would be tried for ever."""
    async with open_store(target.settings) as store:
        with pytest.raises(InvalidObjectError):
            await store.put("\udcff", OBJECT, MEMBERS, repeat=False)
        await store.put("a", OBJECT, MEMBERS, repeat=False)
    assert await objects_of(target) == {"a": bytes_of(OBJECT)}


async def test_every_failure_names_a_code_and_no_secret(target: Target) -> None:
    """The log and `/readyz` would not show why uploads fail, or would show a secret."""
    async with open_store(target.settings) as store:
        await trio.to_thread.run_sync(target.remove)
        with pytest.raises(StoreError) as caught:
            await store.put("a", OBJECT, MEMBERS, repeat=False)
        await trio.to_thread.run_sync(target.restore)
    assert str(caught.value).startswith(f"{caught.value.code}: ")
    assert str(caught.value).isprintable()
    assert not any(secret in str(caught.value) for secret in target.secrets)
