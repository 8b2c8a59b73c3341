"""Three daemons with one journal in PostgreSQL: every acknowledged payload is stored once."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.crash.bucket import read_bucket
from tests.crash.fleet import MORE, torture_fleet
from tests.crash.fleet_clients import Crowd
from tests.crash.fleet_watermarks import FleetWatermarks, all_closed
from tests.crash.proxy import s3_proxy
from tests.crash.store_faults import open_store_faults
from tests.support.clients import seeded
from tests.support.postgres import need_postgres

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.support.s3 import S3Server

pytestmark = pytest.mark.no_cover

_FEW: Final = ["kill one and stop one while the store lies", "promote"]
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


@pytest.mark.large
async def test_a_fleet_outlives_a_daemon_a_zombie_and_a_database(
    seaweed: S3Server, open_folder: Path, seed: int
) -> None:
    """Payloads would be lost, or be stored twice, with a machine or a database."""
    await _torture(seaweed, open_folder, seed, _FEW, Crowd(6, 0.2))


@pytest.mark.large
@pytest.mark.parametrize("watermark", ["off", "on"])
async def test_a_fleet_stores_every_acknowledged_payload_once(
    seaweed: S3Server,
    open_folder: Path,
    seed: int,
    long_torture: bool,  # noqa: FBT001 - a fixture
    watermark: str,
) -> None:
    """Payloads would be lost, or be stored twice, with a machine, a database or a network."""
    plan = _SHORT
    if long_torture:
        plan = [*_ALL, *seeded(seed).choices(_ALL, k=_LONG - len(_ALL))]
    await _torture(seaweed, open_folder, seed, plan, Crowd(16, 0.05), watermark)


async def _torture(
    seaweed: S3Server,
    folder: Path,
    seed: int,
    plan: Sequence[str],
    crowd: Crowd,
    watermark: str = "off",
) -> None:
    need_postgres()
    bucket = seaweed.make_bucket(f"fleet-{watermark}-{seed}-{len(plan)}")
    watermarks = FleetWatermarks(seaweed, bucket) if watermark == "on" else None
    async with s3_proxy(seaweed) as proxy, open_store_faults(seaweed, proxy) as faults:
        environ = {**proxy.environ, "STORE_URL": f"s3://{bucket}/fleet"}
        rng = seeded(seed)
        clients = await torture_fleet(folder, environ, faults, plan, rng, crowd, watermarks)
    stored = read_bucket(seaweed.objects(bucket))
    acknowledged = clients.acknowledged
    print(clients.answers, len(acknowledged), "payloads")  # noqa: T201 - to tune the plan
    assert len(acknowledged) > MORE * len(plan)
    assert not {line for line in acknowledged if not stored[line]}, "lost"
    assert not {line for line, times in stored.items() if times > 1}, "stored twice"
    if watermarks is not None:
        print(watermarks.looks, watermarks.raised, watermarks.documents())  # noqa: T201 - the same
        assert watermarks.raised > len(plan)
        assert all_closed(watermarks.documents())
