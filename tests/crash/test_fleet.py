"""Three daemons with one journal in PostgreSQL: every acknowledged payload is stored once."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.crash.bucket import read_bucket
from tests.crash.fleet import torture_fleet
from tests.crash.fleet_watermarks import FleetWatermarks, all_closed
from tests.crash.proxy import s3_proxy
from tests.crash.store_faults import open_store_faults
from tests.support.clients import seeded
from tests.support.postgres import need_postgres

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.s3 import S3Server

pytestmark = [pytest.mark.no_cover, pytest.mark.large]

_SHORT: Final = [
    "kill",
    "store lies",
    "stop past the lease",
    "store refuses",
    "fail over",
    "cut",
    "kill for long",
    "store hangs",
    "drain",
]
_ALL: Final = [*_SHORT, "cut past the lease", "freeze"]
_LONG: Final = 50


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Return a folder that the user of PostgreSQL may enter."""
    with tempfile.TemporaryDirectory(prefix="payloadd-fleet-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize("watermark", ["off", "on"])
async def test_a_fleet_stores_every_acknowledged_payload_once(
    seaweed: S3Server,
    open_folder: Path,
    seed: int,
    long_torture: bool,  # noqa: FBT001 - a fixture
    watermark: str,
) -> None:
    """Payloads would be lost, or be stored twice, with a machine, a database or a network."""
    need_postgres()
    rng = seeded(seed)
    plan = [*_ALL, *rng.choices(_ALL, k=_LONG - len(_ALL))] if long_torture else _SHORT
    bucket = seaweed.make_bucket(f"fleet-{watermark}-{seed}")
    watermarks = FleetWatermarks(seaweed, bucket) if watermark == "on" else None
    async with s3_proxy(seaweed) as proxy, open_store_faults(seaweed, proxy) as faults:
        environ = {**proxy.environ, "STORE_URL": f"s3://{bucket}/fleet"}
        clients = await torture_fleet(open_folder, environ, faults, plan, rng, watermarks)
    stored = read_bucket(seaweed.objects(bucket))
    acknowledged = clients.acknowledged
    print(clients.answers, len(acknowledged), "payloads")  # noqa: T201 - to tune the plan
    assert len(acknowledged) > 100 * len(plan)
    assert not {line for line in acknowledged if not stored[line]}, "lost"
    assert not {line for line, times in stored.items() if times > 1}, "stored twice"
    if watermarks is not None:
        print(watermarks.looks, watermarks.raised, watermarks.documents())  # noqa: T201 - the same
        assert watermarks.raised > len(plan)
        assert all_closed(watermarks.documents())
