"""The checks of the torture find broken promises, and watermarks and objects that are wrong."""

from __future__ import annotations

import io
import json
from collections import Counter
from typing import TYPE_CHECKING, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.crash.bucket import BucketWatch, read_bucket, wrong_watermarks
from tests.crash.promises import Promises

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.s3 import S3Server

pytestmark = pytest.mark.no_cover


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        pytest.param([b"1", b"2", b"3"], [], id="kept"),
        pytest.param([b"1", b"2"], [], id="uncertain-and-not-there"),
        pytest.param([b"1", b"3"], ["lost: 2"], id="lost"),
        pytest.param([b"1", b"2", b"2"], ["doubled: 2"], id="doubled"),
        pytest.param([b"1", b"2", b"3", b"3"], ["doubled: 3"], id="uncertain-and-doubled"),
        pytest.param([b"1", b"2", b"4"], ["stored, but refused: 4"], id="refused"),
        pytest.param([b"1", b"2", b"5"], ["stored, but never posted: 5"], id="never-posted"),
        pytest.param([], ["lost: 1", "lost: 2"], id="empty"),
    ],
)
def test_broken_promises_are_listed(stored: list[bytes], found: list[str]) -> None:
    """The torture would pass with any daemon."""
    promises = Promises()
    promises.acknowledge([b"1"])
    promises.leave_uncertain([b"2"])
    promises.acknowledge([b"2"])
    promises.leave_uncertain([b"3", b"2"])
    promises.refuse([b"4"])
    assert promises.violations(Counter(stored)) == found


def test_a_second_id_for_one_key_is_a_contradiction() -> None:
    """A client that repeats a request would get two ids for it."""
    promises = Promises()
    promises.keep_receipt("key", "first")
    promises.keep_receipt("key", "first")
    assert promises.violations(Counter()) == []
    promises.keep_receipt("key", "second")
    assert promises.violations(Counter()) == ["key key was answered with first and with second"]


def test_each_line_of_an_object_is_a_payload() -> None:
    """A payload that is twice in an object, or cut off, would not be found."""
    assert read_bucket({"a": b"1\n2\n", "b": b"2\n"}) == {b"1": 1, b"2": 2}
    with pytest.raises(AssertionError, match="cut off"):
        read_bucket({"a": b"1\n2"})


def test_each_row_of_parquet_is_a_payload() -> None:
    """A payload that is twice in an object of Parquet would not be found."""

    def file_of(*payloads: str) -> bytes:
        rows = {"_id": [str(index) for index in range(len(payloads))], "_payload": payloads}
        content = io.BytesIO()
        pq.write_table(pa.table(rows), content)
        return content.getvalue()

    objects = {"a.parquet": file_of("1", "2"), "x/_watermarks/s/p.json": b"{}\n"}
    assert read_bucket(objects | {"b": b"2\n"}) == {b"1": 1, b"2": 2}


@pytest.mark.parametrize(
    ("until", "closed", "stored", "found"),
    [
        pytest.param("10:00:00.002", False, [b"1"], [], id="true"),
        pytest.param("10:00:00.003", True, [b"1", b"2"], [], id="closed"),
        pytest.param(
            "10:00:00.003", False, [b"1"], ["1 ms before a watermark, not stored: 2"], id="ahead"
        ),
        pytest.param(
            "10:00:00.002", True, [b"1", b"2"], ["0 ms behind a closed watermark: 2"], id="open"
        ),
    ],
)
def test_wrong_watermarks_are_found(
    until: str,
    closed: bool,  # noqa: FBT001 - a parameter
    stored: list[bytes],
    found: list[str],
) -> None:
    """The torture would pass with watermarks that are ahead of what is stored."""
    second = 1_764_237_600_000
    watermark = {"complete_until": f"2025-11-27T{until}Z", "closed": closed}
    accepted = {b"1": second + 1, b"2": second + 2}
    assert wrong_watermarks([watermark], accepted, stored) == [f"accepted {one}" for one in found]


def test_objects_that_change_and_watermarks_that_go_back_are_found() -> None:
    """The torture would pass with a daemon that replaces the object of an earlier upload."""
    bucket: dict[str, bytes] = {}

    class Bucket:
        def objects(self, name: str, prefix: str = "") -> Mapping[str, bytes]:
            assert name == "bucket"
            return {key: body for key, body in bucket.items() if key.startswith(prefix)}

    def put_watermark(until: str) -> None:
        document = {"complete_until": f"2025-11-27T{until}Z", "closed": False}
        bucket["some/prefix/_watermarks/default/a.json"] = json.dumps(document).encode()

    watch = BucketWatch(cast("S3Server", Bucket()), "bucket")
    assert watch.look({}) == []
    bucket["some/prefix/a"] = b"1\n"
    put_watermark("10:00:01")
    assert watch.look({}) == []
    put_watermark("10:00:02")
    assert (watch.look({b"1": 1}), watch.raised) == ([], 2)
    bucket["some/prefix/a"] = b"2\n"
    put_watermark("10:00:01")
    assert watch.look({}) == [
        "some/prefix/a has other bytes than before",
        "a watermark went back by 1000 ms",
    ]
