"""The S3 store against servers that check signatures: SeaweedFS, moto, and those of ``--stores``.

The rules that hold for every store are checked in ``tests/storage/test_contract.py``.
"""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
import trio

from payloadd.config.object_options import CHECKSUMS
from payloadd.errors import OperatorStoreError
from payloadd.storage.api import open_store
from payloadd.storage.s3.store import S3Store
from tests.support.objects import MEMBERS, bytes_of, gzipped, plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.config.settings import Settings
    from tests.support.s3 import S3Server

OBJECT = plain(b'{"a":"\xc3\xbc"}\n')
KEYS = ["plain.ndjson", "a/b c+d&e=f?g#h%41.ndjson", "größe/日本/🎈"]


@pytest.fixture
def bucket(s3_server: S3Server, bucket_name: str) -> str:
    """Return a new bucket."""
    return s3_server.make_bucket(bucket_name)


async def test_the_prefix_of_the_store_is_put_before_every_key(
    make_settings: Callable[..., Settings], s3_server: S3Server, bucket: str
) -> None:
    """Objects would be refused, or stored under other keys than the settings say."""
    settings = make_settings(STORE_URL=f"s3://{bucket}/pre fix/ü", **s3_server.environ)
    async with open_store(settings) as store:
        for key in KEYS:
            await store.put(key, OBJECT, MEMBERS, repeat=False)

    stored = await trio.to_thread.run_sync(s3_server.objects, bucket)
    assert stored == {f"pre fix/ü/{key}": bytes_of(OBJECT) for key in KEYS}


@pytest.mark.parametrize("choice", ["off", "on"])
async def test_an_object_has_a_content_encoding_if_it_is_asked_for(
    make_settings: Callable[..., Settings], s3_server: S3Server, bucket: str, choice: str
) -> None:
    """HTTP clients would decompress a file whose name says that it is compressed."""
    environ = {"STORE_URL": f"s3://{bucket}", "S3_CONTENT_ENCODING": choice}
    async with open_store(make_settings(**environ, **s3_server.environ)) as store:
        await store.put("a.gz", gzipped(gzip.compress(bytes_of(OBJECT))), MEMBERS, repeat=False)

    head = await trio.to_thread.run_sync(s3_server.head, bucket, "a.gz")
    stored = await trio.to_thread.run_sync(s3_server.objects, bucket)
    assert head["ContentType"] == "application/x-ndjson"
    assert head.get("ContentEncoding") == (None if choice == "off" else "gzip")
    # rclone capitalizes the names, so they are not the same in ``head["Metadata"]``.
    assert head["ResponseMetadata"]["HTTPHeaders"]["x-amz-meta-format"] == "ndjson-1"
    assert gzip.decompress(stored["a.gz"]) == bytes_of(OBJECT)


@pytest.mark.parametrize(
    ("wrong", "codes"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, {"SignatureDoesNotMatch"}),
        # Swift does not tell the two apart.
        ({"AWS_ACCESS_KEY_ID": "wrong"}, {"InvalidAccessKeyId", "SignatureDoesNotMatch"}),
        ({"STORE_URL": "s3://no-such-bucket"}, {"NoSuchBucket"}),
    ],
)
async def test_wrong_keys_and_a_missing_bucket_are_operator_errors(
    make_settings: Callable[..., Settings],
    s3_server: S3Server,
    bucket: str,
    wrong: dict[str, str],
    codes: set[str],
) -> None:
    """A wrong key or a missing bucket would lose payloads."""
    names = {**s3_server.environ, "STORE_URL": f"s3://{bucket}", **wrong}
    async with open_store(make_settings(**names)) as store:
        with pytest.raises(OperatorStoreError) as caught:
            await store.put("x", OBJECT, MEMBERS, repeat=False)

    assert caught.value.code in codes


@pytest.mark.parametrize("checksum", CHECKSUMS)
async def test_every_checksum_is_accepted(
    make_settings: Callable[..., Settings], s3_server: S3Server, bucket: str, checksum: str
) -> None:
    """A store would refuse every object because of a header that it does not know."""
    if checksum in {"crc32c", "crc64nvme"} and find_spec("awscrt") is None:
        pytest.skip("needs awscrt")
    names = {**s3_server.environ, "STORE_URL": f"s3://{bucket}", "S3_CHECKSUM": checksum}
    async with open_store(make_settings(**names)) as store:
        await store.put("x", OBJECT, MEMBERS, repeat=False)
        assert await store.read_back("x", OBJECT, MEMBERS)


async def test_a_repetition_meets_the_object_of_its_own_batch(
    make_settings: Callable[..., Settings], s3_server: S3Server, bucket: str
) -> None:
    """A replay after a crash would fail for ever, or store payloads twice."""
    async with open_store(make_settings(**s3_server.environ, STORE_URL=f"s3://{bucket}")) as store:
        for repeat in (False, True, True):
            await store.put("x", OBJECT, MEMBERS, repeat=repeat)
        learnt = [line for line in store.learnt() if not line.startswith("If-None-Match")]

    stored = await trio.to_thread.run_sync(s3_server.objects, bucket)
    assert stored == {"x": bytes_of(OBJECT)}
    assert learnt == []


async def test_servers_accept_bodies_that_the_signature_does_not_cover(
    make_settings: Callable[..., Settings], s3_server: S3Server, bucket: str
) -> None:
    """Over https each object would be refused once, and be sent again."""
    settings = make_settings(STORE_URL=f"s3://{bucket}", **s3_server.environ)
    async with open_store(settings) as store:
        assert isinstance(store, S3Store)
        # These servers speak http here, where bodies are always signed.
        store._variants.awaits_checksum = True
        store._variants.note_checksum()
        await store.put("k", OBJECT, MEMBERS, repeat=False)

    # moto, which runs in this process, refuses it over http: the object was signed and sent again.
    refused = ["UNSIGNED-PAYLOAD: not sent, because the store needs signed bodies"]
    assert store.learnt() == (refused if s3_server.process is None else [])
    assert await trio.to_thread.run_sync(s3_server.objects, bucket) == {"k": bytes_of(OBJECT)}
