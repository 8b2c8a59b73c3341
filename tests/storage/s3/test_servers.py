"""The S3 store against real servers that check signatures: SeaweedFS and moto."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest
import trio

from payloadd.errors import OperatorStoreError
from payloadd.model.formats.ndjson import encode
from payloadd.storage.api import open_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.config.settings import Settings
    from tests.support.s3 import S3Server

OBJECT = encode([b'{"a":"\xc3\xbc"}\n'], "none")
# No backslash: SeaweedFS takes it for a slash.
KEYS = ["plain.ndjson", "a/b c+d&e=f?g#h%41.ndjson", "größe/日本/🎈", "~(*)'!,;:@$", '"<>|^`{}']


@pytest.fixture(params=["seaweed", "moto"])
def server(request: pytest.FixtureRequest) -> S3Server:
    """Return each server in turn."""
    found: S3Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def bucket(server: S3Server, request: pytest.FixtureRequest) -> str:
    """Return a new bucket."""
    return server.make_bucket(f"store-{abs(hash(request.node.nodeid)):x}")


async def test_objects_arrive(
    make_settings: Callable[..., Settings], server: S3Server, bucket: str
) -> None:
    """Objects would be refused, or stored under another name than the one they have."""
    settings = make_settings(STORE_URL=f"s3://{bucket}/pre fix/ü", **server.environ)
    async with open_store(settings) as store:
        for key in KEYS:
            await store.put(key, OBJECT)
            await store.put(key, OBJECT)

    stored = await trio.to_thread.run_sync(server.objects, bucket)
    assert stored == {f"pre fix/ü/{key}": b"".join(OBJECT.pieces) for key in KEYS}


async def test_an_empty_and_a_large_object(
    make_settings: Callable[..., Settings], server: S3Server, bucket: str
) -> None:
    """A full batch would not go through."""
    large = encode([bytes(range(256)) * 4096] * 9, "none")
    async with open_store(make_settings(STORE_URL=f"s3://{bucket}", **server.environ)) as store:
        await store.put("large", large)
        await store.put("empty", encode([], "none"))

    stored = await trio.to_thread.run_sync(server.objects, bucket)
    assert stored == {"large": b"".join(large.pieces), "empty": b""}


async def test_what_the_store_knows_of_an_object(
    make_settings: Callable[..., Settings], server: S3Server, bucket: str
) -> None:
    """Readers would not know how to read what they get."""
    async with open_store(make_settings(STORE_URL=f"s3://{bucket}", **server.environ)) as store:
        await store.put("a.gz", encode(OBJECT.pieces, "gzip"))

    head = await trio.to_thread.run_sync(server.head, bucket, "a.gz")
    stored = await trio.to_thread.run_sync(server.objects, bucket)
    assert (head["ContentType"], head["ContentEncoding"]) == ("application/x-ndjson", "gzip")
    assert gzip.decompress(stored["a.gz"]) == b"".join(OBJECT.pieces)


async def test_delete(
    make_settings: Callable[..., Settings], server: S3Server, bucket: str
) -> None:
    """`payloadd check` would leave its probe behind."""
    async with open_store(make_settings(STORE_URL=f"s3://{bucket}", **server.environ)) as store:
        await store.put("x", OBJECT)
        await store.delete("x")
        await store.delete("x")

    assert await trio.to_thread.run_sync(server.keys, bucket) == []


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "wrong"}, "InvalidAccessKeyId"),
        ({"STORE_URL": "s3://no-such-bucket"}, "NoSuchBucket"),
    ],
)
async def test_what_an_operator_has_to_mend(
    make_settings: Callable[..., Settings],
    server: S3Server,
    bucket: str,
    wrong: dict[str, str],
    code: str,
) -> None:
    """A wrong key or a missing bucket would lose payloads."""
    names = {**server.environ, "STORE_URL": f"s3://{bucket}", **wrong}
    async with open_store(make_settings(**names)) as store:
        with pytest.raises(OperatorStoreError) as caught:
            await store.put("x", OBJECT)

    assert caught.value.code == code


async def test_many_at_once(
    make_settings: Callable[..., Settings], server: S3Server, bucket: str
) -> None:
    """Workers would get in each other's way."""
    settings = make_settings(STORE_URL=f"s3://{bucket}", MAX_WORKERS="32", **server.environ)
    bodies = {f"{index:03}": encode([b"%d\n" % index], "none") for index in range(100)}
    left = iter(bodies.items())
    async with open_store(settings) as store:

        async def worker() -> None:
            for key, body in left:
                await store.put(key, body)

        async with trio.open_nursery() as nursery:
            for _ in range(32):
                nursery.start_soon(worker)

    stored = await trio.to_thread.run_sync(server.objects, bucket)
    assert stored == {key: b"".join(body.pieces) for key, body in bodies.items()}
