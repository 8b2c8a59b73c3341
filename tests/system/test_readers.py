"""A million events of three streams over three hours, counted by every reader."""

from __future__ import annotations

import json
import signal
from collections import Counter
from contextlib import closing
from datetime import date
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, Final

import duckdb
import polars as pl
import pyarrow.dataset as ds
import pytest
import trio

from tests.support.clock_step import clock_step
from tests.support.daemon import running_daemon

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

EVENTS: Final = 1_008_000
"""At least a million, and whole requests in each hour of each stream."""
STREAMS: Final = ("default", "clicks", "errors")
_PER_REQUEST: Final = 1000
_SCHEMA: Final = """
n        int64
user     int64
country  string  $.geo.country
price    double
ok       boolean
url      string
time     timestamp
tag      string
_payload off
"""
FORMATS: Final = {
    "ndjson": {},
    "ndjson.gz": {"COMPRESSION": "gzip"},
    "ndjson.zst": {"COMPRESSION": "zstd"},
    "parquet": {"OBJECT_FORMAT": "parquet", "PARQUET_SCHEMA": "schema"},
}
Counts = Counter[tuple[str, str, str]]
"""Events by stream, date and hour."""


def requests_of(events: int) -> list[bytes]:
    """Return bodies of NDJSON with so many events together."""
    return [
        b"".join(
            b'{"n":%d,"user":%d,"geo":{"country":"%b"},"price":%d.25,"ok":true,'
            b'"url":"https://example.org/%d","time":"2026-11-27T09:%02d:00Z","tag":"a"}\n'
            % (n, n * 7919 % 100_000, (b"de", b"fr", b"us")[n % 3], n % 100, n % 1000, n % 60)
            for n in range(start, start + _PER_REQUEST)
        )
        for start in range(0, events, _PER_REQUEST)
    ]


def post_all(port: int, stream: str, bodies: list[bytes]) -> None:
    """Post all bodies over one connection. Blocks."""
    with closing(HTTPConnection("127.0.0.1", port)) as connection:
        for body in bodies:
            headers = {"Content-Type": "application/x-ndjson"}
            connection.request("POST", f"/v1/payloads/{stream}", body, headers)
            answer = connection.getresponse()
            assert answer.status == 202, answer.read()
            answer.read()


async def store_events(folder: Path, environ: dict[str, str]) -> None:
    """Store a third of the events of each stream in each of three hours."""
    (folder / "schema").write_text(_SCHEMA)
    env = {
        "STREAMS": "clicks,errors",
        "BATCH_MAX_PAYLOADS": "50000",
        "BATCH_LINGER": "2s",
        "DRAIN_TIMEOUT": "120s",
        **environ,
    }
    bodies = requests_of(EVENTS // 9)
    for hour in range(3):
        async with running_daemon(folder, env | clock_step(folder, 3600 * hour)) as daemon:
            port = int(daemon.url.rpartition(":")[2])
            async with trio.open_nursery() as nursery:
                for stream in STREAMS:
                    nursery.start_soon(trio.to_thread.run_sync, post_all, port, stream, bodies)
            daemon.signal(signal.SIGTERM)
            assert (await daemon.drained(180))["stored"] == EVENTS // 3


def duckdb_counts(files: str) -> Counts:
    """Count with DuckDB, one query for each partition."""
    rows = duckdb.sql(f"SELECT DISTINCT dt::VARCHAR, hour FROM {files}").fetchall()
    found: Counts = Counter()
    for day, hour in rows:
        query = (
            f"SELECT split_part(filename, '/', -4), count(*) FROM {files}"
            f" WHERE dt = '{day}' AND hour = '{hour}' GROUP BY ALL"
        )
        for stream, count in duckdb.sql(query).fetchall():
            found[stream, day, f"{int(hour):02}"] += count
    return found


def duckdb_of(kind: str) -> Callable[[Path], Counts]:
    """Return the function that counts the objects of a format with DuckDB."""
    read = "read_parquet" if kind == "parquet" else "read_ndjson"
    options = "hive_partitioning = true, filename = true"
    return lambda root: duckdb_counts(f"{read}('{root}/*/dt=*/hour=*/*.{kind}', {options})")


def polars_parquet(root: Path) -> Counts:
    """Count with polars."""
    found: Counts = Counter()
    for stream in STREAMS:
        rows = pl.scan_parquet(root / stream / "**/*.parquet", hive_partitioning=True)
        for day, hour, count in rows.group_by("dt", "hour").len().collect().iter_rows():
            assert isinstance(day, date)
            found[stream, str(day), f"{hour:02}"] += count
    return found


def polars_ndjson(root: Path) -> Counts:
    """Count lines with polars, folder by folder: it knows no partitions of NDJSON."""
    found: Counts = Counter()
    for folder in root.glob("*/dt=*/hour=*"):
        stream, day, hour = folder.relative_to(root).parts
        count = pl.scan_ndjson(folder / "*.ndjson").select(pl.len()).collect().item()
        found[stream, day.removeprefix("dt="), hour.removeprefix("hour=")] += count
    return found


def pyarrow_parquet(root: Path) -> Counts:
    """Count with pyarrow's dataset."""
    found: Counts = Counter()
    for stream in STREAMS:
        dataset = ds.dataset(root / stream, partitioning="hive")
        grouped = dataset.to_table(columns=["dt", "hour"]).group_by(["dt", "hour"])
        for row in grouped.aggregate([([], "count_all")]).to_pylist():
            found[stream, row["dt"], f"{int(row['hour']):02}"] += row["count_all"]
    return found


def spark_of(kind: str) -> Callable[[Path], Counts]:
    """Return the function that counts the objects of a format with Spark."""

    def count(root: Path) -> Counts:
        sql = pytest.importorskip("pyspark.sql")
        session = sql.SparkSession.builder.master("local[2]").getOrCreate()
        found: Counts = Counter()
        for stream in STREAMS:
            read: Any = session.read.parquet if kind == "parquet" else session.read.json
            rows = read(str(root / stream)).groupBy("dt", "hour").count().collect()
            for row in rows:
                found[stream, str(row["dt"]), f"{int(row['hour']):02}"] += row["count"]
        return found

    return count


READERS: Final = [
    ("ndjson", (duckdb_of("ndjson"), polars_ndjson, spark_of("ndjson"))),
    ("ndjson.gz", (duckdb_of("ndjson.gz"), spark_of("ndjson.gz"))),
    ("ndjson.zst", (duckdb_of("ndjson.zst"),)),  # the wheel of PySpark has no zstd for text
    (
        "parquet",
        (duckdb_of("parquet"), polars_parquet, pyarrow_parquet, spark_of("parquet")),
    ),
]


@pytest.mark.large
@pytest.mark.no_cover
@pytest.mark.parametrize(("kind", "readers"), READERS)
async def test_every_reader_counts_what_was_accepted(
    tmp_path: Path, kind: str, readers: tuple[Callable[[Path], Counts], ...]
) -> None:
    """A reader would miss events, count some twice, or find them in another hour."""
    await store_events(tmp_path, FORMATS[kind])
    root = tmp_path / "payloadd-data" / "objects"
    for read in readers:
        found = await trio.to_thread.run_sync(read, root)
        assert sum(found.values()) == EVENTS, found
        by_stream: Counter[str] = Counter()
        for (stream, _, _), count in found.items():
            by_stream[stream] += count
        assert by_stream == dict.fromkeys(STREAMS, EVENTS // 3)
        # A run may have crossed the end of an hour.
        assert 9 <= len(found) <= 18, json.dumps([list(key) for key in found])
