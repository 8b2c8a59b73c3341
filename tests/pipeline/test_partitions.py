"""Borders of batches, seen by readers that skip folders by the dates and hours in their names."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import duckdb
import polars as pl
import pyarrow.dataset as ds
import pytest

from payloadd.config.settings import load
from payloadd.model.formats import PARQUET
from tests.pipeline.rig import FaultyStore, Pipeline

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from payloadd.model.formats.api import EncodedObject
    from payloadd.model.job import Members

BORDERS: Final = (
    "2026-11-27T08:00:00",  # an hour, with a leading zero on one side
    "2026-11-27T10:00:00",  # the hours on both sides have another number of digits
    "2026-11-30T00:00:00",  # midnight
    "2026-12-01T00:00:00",  # the end of a month
    "2027-01-01T00:00:00",  # the end of a year
    "2028-02-29T00:00:00",  # a leap day, and the day behind it
    "2028-03-01T00:00:00",
)
Partition = tuple[str, str]
"""A date and an hour, as the names of folders have them."""


def moments() -> list[datetime]:
    """Return the last and the first millisecond at each border, and one that goes back over it."""
    found = []
    for text in BORDERS:
        border = datetime.fromisoformat(f"{text}+00:00").timestamp()
        steps = (-1500, -1, 0, 1, 3_599_999, -1)
        found += [datetime.fromtimestamp(border + step / 1000, UTC) for step in steps]
    return found


@dataclass
class FolderStore(FaultyStore):
    """A store that keeps its objects as files, too."""

    root: Path = field(kw_only=True)

    async def put(self, key: str, body: EncodedObject, members: Members, *, repeat: bool) -> None:
        """Keep the object, and write it to a file."""
        await super().put(key, body, members, repeat=repeat)
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(body.pieces))


@pytest.fixture
def columns(tmp_path: Path) -> Iterator[None]:
    """Encode Parquet with a column for the time in the payloads."""
    (tmp_path / "schema").write_text("t timestamp_ms\n")
    PARQUET.configure(load({"PARQUET_SCHEMA": str(tmp_path / "schema")}))
    yield
    PARQUET.configure(None)


async def store_around_borders(root: Path, **environ: str) -> Counter[Partition]:
    """Accept payloads around borders, one request each; return their number by partition."""
    settings = {"BATCH_MAX_PAYLOADS": "10000", **environ}
    pipeline = Pipeline(FolderStore(root=root), 4, **settings)
    async with pipeline.open():
        for moment in moments():
            milliseconds = round(moment.timestamp() * 1000)
            with patch("time.time_ns", return_value=milliseconds * 1_000_000):
                await pipeline.intake.accept([b'{"t":%d}' % milliseconds])
    return Counter((f"{moment:%Y-%m-%d}", f"{moment:%H}") for moment in moments())


def duckdb_parquet(root: Path, day: str, hour: str) -> list[Any]:
    """Return the times in one partition, by DuckDB."""
    files = f"read_parquet('{root}/*/*/*.parquet', hive_partitioning = true)"
    query = f"SELECT epoch_ms(t) FROM {files} WHERE dt = '{day}' AND hour = '{hour}'"
    plan = duckdb.sql(f"EXPLAIN ANALYZE {query}").fetchall()[0][1]
    assert "Scanning Files: 1/" in plan or "Scanning Files: 2/" in plan, plan
    return [row[0] for row in duckdb.sql(query).fetchall()]


def duckdb_ndjson(root: Path, day: str, hour: str) -> list[Any]:
    """Return the times in one partition of NDJSON, compressed or not, by DuckDB."""
    files = f"read_ndjson('{root}/*/*/*.ndjson*', hive_partitioning = true)"
    query = f"SELECT t FROM {files} WHERE dt = '{day}' AND hour = '{hour}'"
    return [row[0] for row in duckdb.sql(query).fetchall()]


def polars_parquet(root: Path, day: str, hour: str) -> list[Any]:
    """Return the times in one partition, by polars."""
    rows = pl.scan_parquet(root / "**/*.parquet", hive_partitioning=True).filter(
        pl.col("dt") == date.fromisoformat(day), pl.col("hour") == int(hour)
    )
    return rows.select(pl.col("t").dt.epoch("ms")).collect()["t"].to_list()


def pyarrow_parquet(root: Path, day: str, hour: str) -> list[Any]:
    """Return the times in one partition, by pyarrow's dataset."""
    dataset = ds.dataset(root, partitioning="hive")
    wanted = (ds.field("dt") == day) & (ds.field("hour") == int(hour))
    assert len(list(dataset.get_fragments(filter=wanted))) <= 2
    times = dataset.to_table(columns=["t"], filter=wanted)["t"]
    return [round(one.timestamp() * 1000) for one in times.to_pylist()]


@pytest.mark.parametrize(
    ("environ", "readers"),
    [
        (
            {"OBJECT_FORMAT": "parquet", "KEY_TEMPLATE": "dt={date}/hour={hour}/{id}"},
            (duckdb_parquet, polars_parquet, pyarrow_parquet),
        ),
        ({"KEY_TEMPLATE": "dt={date}/hour={hour}/{id}.ndjson"}, (duckdb_ndjson,)),
        (
            {"KEY_TEMPLATE": "dt={date}/hour={hour}/{id}.ndjson", "COMPRESSION": "gzip"},
            (duckdb_ndjson,),
        ),
        (
            {"KEY_TEMPLATE": "dt={date}/hour={hour}/{id}.ndjson", "COMPRESSION": "zstd"},
            (duckdb_ndjson,),
        ),
    ],
)
@pytest.mark.usefixtures("columns")
async def test_a_reader_that_skips_folders_finds_what_was_accepted_in_the_hour(
    tmp_path: Path,
    environ: dict[str, str],
    readers: tuple[Callable[[Path, str, str], list[Any]], ...],
) -> None:
    """A query for one hour would miss payloads, or return those of another hour."""
    root = tmp_path / "objects"
    wanted = await store_around_borders(root, **environ)
    for read in readers:
        for (day, hour), count in wanted.items():
            found = [datetime.fromtimestamp(ms / 1000, UTC) for ms in read(root, day, hour)]
            assert [f"{one:%Y-%m-%d %H}" for one in found] == [f"{day} {hour}"] * count, read
