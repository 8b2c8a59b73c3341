"""Objects that HTTP clients download by a presigned URL."""

from __future__ import annotations

import gzip
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import requests
import trio
import zstandard

from payloadd.model.formats import FORMATS
from payloadd.model.job import IdSource, Job
from payloadd.storage.api import open_store
from tests.support.objects import MEMBERS, bytes_of
from tests.support.tools import need_tools

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.config.settings import Settings
    from tests.support.s3 import S3Server

LINES = b'{"a":1}\n' * 1000


def presigned(server: S3Server, bucket: str, key: str) -> str:
    """Return a URL with which anyone may read an object for a minute."""
    with closing(server.client()) as client:
        return str(
            client.generate_presigned_url(
                "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=60
            )
        )


@pytest.mark.parametrize(
    ("name", "decompress"),
    [("gzip", gzip.decompress), ("zstd", zstandard.ZstdDecompressor().decompress)],
)
async def test_a_downloaded_object_is_the_file_that_its_name_says(
    make_settings: Callable[..., Settings],
    seaweed: S3Server,
    bucket_name: str,
    name: str,
    decompress: Callable[[bytes], bytes],
) -> None:
    """A file would be named .gz and be plain text: tools that open it would fail."""
    need_tools("curl")
    bucket = seaweed.make_bucket(bucket_name)
    its_format = FORMATS[name]
    (job_id,) = IdSource().new_ids(1)
    body = its_format.encode([Job(1, job_id, LINES, 1000)])
    key = f"a.ndjson{its_format.suffix}"
    async with open_store(make_settings(STORE_URL=f"s3://{bucket}", **seaweed.environ)) as store:
        await store.put(key, body, MEMBERS, repeat=False)
    url = presigned(seaweed, bucket, key)
    answer = await trio.to_thread.run_sync(lambda: requests.get(url, timeout=30))
    curl = await trio.run_process(
        ["curl", "--compressed", "--silent", "--fail", url], capture_stdout=True
    )
    assert answer.content == curl.stdout == bytes_of(body)
    assert decompress(answer.content) == LINES
