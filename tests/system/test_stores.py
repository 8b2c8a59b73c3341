"""The daemon and ``payloadd check`` in front of each real S3 server; run with ``--stores``."""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import httpx
import pytest
import trio
import zstandard
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from tests.support.clients import Posts
from tests.support.daemon import run_command, running_daemon
from tests.support.s3 import REGION

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.s3 import S3Server

pytestmark = pytest.mark.stores

_LINE: Final = 1024 * 1024
_LARGE: Final = {
    "MAX_LENGTH": "80MiB",
    "BATCH_MAX_PAYLOADS": "100",
    "BATCH_MAX_BYTES": "64MiB",
    "MAX_QUEUE_BYTES": "256MiB",
    "UPLOAD_TIMEOUT": "60s",
}


def _payloads(count: int) -> list[bytes]:
    """Return payloads whose lines have 1 MiB each; half of each cannot be compressed."""
    return [
        b'"%s%s"'
        % (
            hashlib.shake_256(b"%d" % number).hexdigest(_LINE // 4).encode(),
            b"x" * (_LINE // 2 - 3),
        )
        for number in range(count)
    ]


def _decode(key: str, body: bytes) -> bytes:
    if key.endswith(".gz"):
        return gzip.decompress(body)
    if key.endswith(".zst"):
        return zstandard.ZstdDecompressor().decompressobj().decompress(body)
    return body


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
async def test_a_real_server_stores_an_object_of_64_mib(
    s3_server: S3Server, tmp_path: Path, compression: str
) -> None:
    """Large batches would be refused or cut by another S3 than AWS's."""
    bucket = await trio.to_thread.run_sync(s3_server.make_bucket, f"large-{compression}")
    env = {**s3_server.environ, **_LARGE, "STORE_URL": f"s3://{bucket}", "COMPRESSION": compression}
    payloads = _payloads(64)
    async with running_daemon(tmp_path, env) as daemon:
        posts = Posts(daemon.url)
        await posts.run([payloads])
        assert posts.answers == {"202": 1}, posts.summary()
        await daemon.wait_until_stored(64, within=120)
    objects = await trio.to_thread.run_sync(s3_server.objects, bucket)
    await trio.to_thread.run_sync(s3_server.drop_bucket, bucket)
    assert len(objects) == 1, {key: len(body) for key, body in objects.items()}
    ((key, body),) = objects.items()
    assert _decode(key, body) == b"\n".join(payloads) + b"\n"


async def test_check_succeeds_with_a_real_server_and_leaves_nothing(
    s3_server: S3Server, tmp_path: Path
) -> None:
    """`check` would call a good store broken, or leave its object there."""
    env = {
        **s3_server.environ,
        "STORE_URL": "s3://check-stores/a = + % ü 日本",
        "KEY_TEMPLATE": "b:* {host}/{date}/{id}",
    }
    missing = await run_command("check", folder=tmp_path, env=env)
    assert missing.returncode == 78
    assert "failed  write        NoSuchBucket" in missing.stdout
    done = await run_command("check", "--create", folder=tmp_path, env=env)
    assert done.returncode == 0, done.stdout
    assert "ok      create" in done.stdout
    assert "ok      read" in done.stdout
    assert "ok      delete" in done.stdout
    assert await trio.to_thread.run_sync(s3_server.keys, "check-stores") == []
    await trio.to_thread.run_sync(s3_server.drop_bucket, "check-stores")


@pytest.mark.parametrize(
    "question",
    [
        "If-None-Match: *",
        "wrong x-amz-checksum-sha256",
        "another body than the signed one",
        "metadata kept",
    ],
)
def test_the_servers_differ_as_the_readme_says(
    request: pytest.FixtureRequest, s3_server: S3Server, question: str
) -> None:
    """The table of the README would be out of date."""
    name = request.node.callspec.params["s3_server"]
    bucket = s3_server.make_bucket("differences")
    with closing(s3_server.client()) as client:
        answer = _ASKED[question](client, s3_server, bucket)
    assert answer == _ANSWERS[question][name]


def _code(call: Callable[..., object], **arguments: object) -> str:
    """Return the error code of a call of boto3, or ``stored``."""
    try:
        call(**arguments)
    except ClientError as error:
        code: str = error.response["Error"]["Code"]
        return code
    return "stored"


def _put_twice(client: Any, _: S3Server, bucket: str) -> str:  # noqa: ANN401 - a boto3 client
    client.put_object(Bucket=bucket, Key="twice", Body=b"1")
    return _code(client.put_object, Bucket=bucket, Key="twice", Body=b"2", IfNoneMatch="*")


def _put_wrong_checksum(client: Any, _: S3Server, bucket: str) -> str:  # noqa: ANN401 - a boto3 client
    wrong = base64.b64encode(bytes(32)).decode()
    return _code(client.put_object, Bucket=bucket, Key="sum", Body=b"1", ChecksumSHA256=wrong)


def _read_metadata(client: Any, _: S3Server, bucket: str) -> str:  # noqa: ANN401 - a boto3 client
    client.put_object(Bucket=bucket, Key="meta", Body=b"1", Metadata={"first": "a-b"})
    found: dict[str, str] = client.head_object(Bucket=bucket, Key="meta")["Metadata"]
    # rclone writes the names of metadata with capitals: names of headers have no case.
    return " ".join(f"{name.lower()}={text}" for name, text in found.items())


def _put_changed_body(
    _: Any,  # noqa: ANN401 - a boto3 client
    server: S3Server,
    bucket: str,
) -> str:
    """Sign one body with ``x-amz-content-sha256``, and send another one."""
    url = f"{server.endpoint}/{bucket}/changed"
    signed = AWSRequest("PUT", url, data=b"1", headers={"Content-Type": "text/plain"})
    keys = Credentials(server.access_key, server.secret_key)
    S3SigV4Auth(keys, "s3", REGION).add_auth(signed)
    answer = httpx.put(url, content=b"2", headers=dict(signed.headers), trust_env=False)
    code = re.search("<Code>(.*)</Code>", answer.text)
    return "stored" if answer.is_success else code[1] if code else str(answer.status_code)


_ASKED: Final = {
    "another body than the signed one": _put_changed_body,
    "If-None-Match: *": _put_twice,
    "wrong x-amz-checksum-sha256": _put_wrong_checksum,
    "metadata kept": _read_metadata,
}
_ANSWERS: Final = {
    "If-None-Match: *": {
        "seaweed": "PreconditionFailed",
        "moto": "PreconditionFailed",
        "radosgw": "PreconditionFailed",
        "swift": "NotImplemented",
        "rclone": "stored",
    },
    "wrong x-amz-checksum-sha256": {
        "seaweed": "BadDigest",
        "moto": "stored",
        "radosgw": "stored",
        "swift": "stored",
        "rclone": "stored",
    },
    "another body than the signed one": {
        "seaweed": "stored",
        "moto": "stored",
        "radosgw": "XAmzContentSHA256Mismatch",
        "swift": "BadDigest",
        "rclone": "stored",
    },
    "metadata kept": dict.fromkeys(("seaweed", "moto", "radosgw", "swift", "rclone"), "first=a-b"),
}
