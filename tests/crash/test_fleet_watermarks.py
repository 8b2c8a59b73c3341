"""The check of a fleet's watermarks finds wrong ones."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import pytest
import trio

from tests.crash.fleet_watermarks import FleetWatermarks, all_closed
from tests.journal.postgres.rig import member
from tests.support.databases import new_database
from tests.support.journal import batch, id_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.support.s3 import S3Server

pytestmark = pytest.mark.no_cover

_AT = id_of(0).int >> 80


class Bucket:
    """A bucket with one watermark, and with objects."""

    def __init__(self) -> None:
        self.objects_: dict[str, bytes] = {}

    def objects(self, name: str, prefix: str = "") -> Mapping[str, bytes]:
        """Return the objects below ``prefix``."""
        assert name == "bucket"
        return {key: body for key, body in self.objects_.items() if key.startswith(prefix)}

    def mark(self, milliseconds: int, *, closed: bool = False) -> None:
        """Put the watermark of lane 1."""
        until = datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat()
        document = {"process": "0a1b-lane1", "complete_until": until, "closed": closed}
        self.objects_["fleet/_watermarks/default/1.json"] = json.dumps(document).encode()


async def test_watermarks_that_pass_what_is_not_stored_are_found() -> None:
    """The torture would pass with a fleet whose watermarks are ahead."""
    url, bucket = new_database(), Bucket()
    watermarks = FleetWatermarks(cast("S3Server", bucket), "bucket")

    async def look() -> list[str]:
        found = await trio.to_thread.run_sync(watermarks.look, url)
        return [line.partition(" of ")[0] for line in found]

    async with member(url) as one:
        await one.accept(1, count=3)
        bucket.mark(_AT)
        assert await look() == []
        bucket.mark(_AT + 1)
        assert await look() == [f"not stored: lane 1: {number}" for number in (1, 2, 3)]
        bucket.objects_["fleet/a"] = b"1\n3\n"
        assert await look() == ["not stored: lane 1: 2"]
        bucket.mark(_AT, closed=True)
        behind = "behind a closed watermark: lane 1: "
        assert await look() == [f"{behind}{number}" for number in (1, 2, 3)]
        one.journal.settle(batch(*one.pipeline.received, sealed=False))
        await one.journal.pulse()
        assert await look() == []
        bucket.mark(_AT + 9, closed=True)
        assert await look() == []
    assert (watermarks.looks, watermarks.raised) == (6, 2)
    assert all_closed(watermarks.documents())
