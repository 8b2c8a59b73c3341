"""The S3 store against servers that check signatures: SeaweedFS and moto.

The rules that hold for every store are checked in ``tests/storage/test_contract.py``.
"""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest
import trio

from payloadd.errors import OperatorStoreError
from payloadd.storage.api import open_store
from tests.support.objects import MEMBERS, bytes_of, gzipped, plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.config.settings import Settings
    from tests.support.s3 import S3Server

OBJECT = plain(b'{"a":"\xc3\xbc"}\n')
KEYS = ["plain.ndjson", "a/b c+d&e=f?g#h%41.ndjson", "größe/日本/🎈"]


@pytest.fixture(params=["seaweed", "moto"])
def server(request: pytest.FixtureRequest) -> S3Server:
    """Return each of the two servers in turn."""
    found: S3Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def bucket(server: S3Server, bucket_name: str) -> str:
    """Return a new bucket."""
    return server.make_bucket(bucket_name)


async def test_the_prefix_of_the_store_is_put_before_every_key(
    make_settings: Callable[..., Settings], server: S3Server, bucket: str
) -> None:
    """Objects would be refused, or stored under other keys than the settings say."""
    settings = make_settings(STORE_URL=f"s3://{bucket}/pre fix/ü", **server.environ)
    async with open_store(settings) as store:
        for key in KEYS:
            await store.put(key, OBJECT, MEMBERS, repeat=False)

    stored = await trio.to_thread.run_sync(server.objects, bucket)
    assert stored == {f"pre fix/ü/{key}": bytes_of(OBJECT) for key in KEYS}


async def test_an_object_has_content_type_and_content_encoding(
    make_settings: Callable[..., Settings], server: S3Server, bucket: str
) -> None:
    """Readers would not know how to decode an object."""
    async with open_store(make_settings(STORE_URL=f"s3://{bucket}", **server.environ)) as store:
        await store.put("a.gz", gzipped(gzip.compress(bytes_of(OBJECT))), MEMBERS, repeat=False)

    head = await trio.to_thread.run_sync(server.head, bucket, "a.gz")
    stored = await trio.to_thread.run_sync(server.objects, bucket)
    assert (head["ContentType"], head["ContentEncoding"]) == ("application/x-ndjson", "gzip")
    assert gzip.decompress(stored["a.gz"]) == bytes_of(OBJECT)


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": "wrong"}, "InvalidAccessKeyId"),
        ({"STORE_URL": "s3://no-such-bucket"}, "NoSuchBucket"),
    ],
)
async def test_wrong_keys_and_a_missing_bucket_are_operator_errors(
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
            await store.put("x", OBJECT, MEMBERS, repeat=False)

    assert caught.value.code == code
