"""The recipes of the README for readers, run against what daemons have stored."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
import uuid
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import duckdb
import duckdb_extension_httpfs
import pytest
import trio

from payloadd.config.parquet_schema import schema_of
from payloadd.config.settings import load
from payloadd.model.formats import FORMATS
from payloadd.model.formats.parquet_table import arrow_schema
from payloadd.model.job import IdSource
from payloadd.model.keys import KeyTemplate
from payloadd.model.layout import Layout
from tests.support.daemon import ROOT, running_daemon
from tests.support.senders import changed, configuration
from tests.system.test_streams import post_to

if TYPE_CHECKING:
    from tests.support.s3 import S3Server

pytestmark = pytest.mark.no_cover

DAY: Final = "2026-11-27"
FOLDER: Final = "payloadd-data/objects"
_ATHENA_TYPES: Final = {
    "string": "string",
    "int64": "bigint",
    "timestamp[us, tz=UTC]": "timestamp",
    "decimal128(12, 2)": "decimal(12,2)",
}
"""Athena's types of the types of Arrow that the example has ("Data types in Amazon Athena")."""


def schema_lines() -> list[str]:
    """Return the lines of the example of a schema."""
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"^# name +type +path\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert block is not None
    return block[1].splitlines()


def recipe(heading: str, folder: Path, day: str, hour: str = "08") -> str:
    """Return a recipe for the objects in a folder, of a day from an hour on."""
    text = configuration(heading)
    year, month, date = day.split("-")
    for old, new in {
        FOLDER: str(folder / FOLDER),
        DAY: day,
        "2026, 11, 27": f"{year}, {int(month)}, {int(date)}",
        "'08'": f"'{hour}'",
        ">= 8": f">= {int(hour)}",
    }.items():
        text = text.replace(old, new)
    return text


def run_python(text: str) -> str:
    """Run a program, and return its output."""
    output = io.StringIO()
    with redirect_stdout(output):
        exec(compile(text, "README", "exec"), {})  # noqa: S102 - our own recipe
    return output.getvalue()


async def store_events(folder: Path, **environ: str) -> tuple[str, str]:
    """Store three events by a daemon; return the day and the hour of their folder."""
    (folder / "schema").write_text("\n".join(schema_lines()))
    env = {
        "OBJECT_FORMAT": "parquet",
        "PARQUET_SCHEMA": "schema",
        "STREAMS": "clicks",
        "WATERMARK": "on",
        "BATCH_LINGER": "50ms",
    }
    async with running_daemon(folder, env | environ) as daemon:
        for country in ("de", "fr", "de"):
            body = b'{"user_id":7,"price":"1.50","geo":{"country":"%b"}}\n' % country.encode()
            assert await post_to(daemon, "clicks", body) == 202
        await daemon.wait_until_stored(3)
        daemon.signal(signal.SIGTERM)
        await daemon.drained()
    paths = (folder / FOLDER / "clicks").glob("dt=*/hour=*")
    found = sorted((path.parent.name[3:], path.name[5:]) for path in paths)
    return found[0] if found else ("", "")


async def test_the_recipes_for_local_files_count_what_was_posted(tmp_path: Path) -> None:
    """A user would copy a query that fails, or that misses payloads."""
    day, hour = await store_events(tmp_path)
    assert duckdb.sql(recipe("DuckDB", tmp_path, day, hour)).fetchall() == [("de", 2), ("fr", 1)]
    polars = run_python(recipe("polars", tmp_path, day, hour))
    assert re.findall(r"(de|fr)\D+(\d)", polars) == [("de", "2"), ("fr", "1")]
    compaction = recipe("Compaction", tmp_path, day)
    duckdb.sql(changed(compaction, **{"'day.parquet'": f"'{tmp_path}/day.parquet'"}))
    found = duckdb.sql(
        f"SELECT count(*), sum(price), count(_payload) FROM '{tmp_path}/day.parquet'"
    )
    assert [str(value) for value in found.fetchall()[0]] == ["3", "4.50", "0"]
    complete = duckdb.sql(recipe("Complete until", tmp_path, day))
    ((until, dead, silent),) = complete.project("epoch_ms(complete_until), dead, silent").fetchall()
    accepted = duckdb.sql(
        f"SELECT max(epoch_ms(_accepted_at)) FROM '{tmp_path}/day.parquet'"
    ).fetchall()[0][0]
    assert (dead, silent) == (0, None)
    assert until > accepted


async def test_the_recipe_for_s3_counts_what_was_posted(tmp_path: Path, seaweed: S3Server) -> None:
    """A user would copy a query that finds no bucket."""
    bucket = await trio.to_thread.run_sync(seaweed.make_bucket, f"recipes-{uuid.uuid4().hex}")
    await store_events(tmp_path, STORE_URL=f"s3://{bucket}/telemetry", **seaweed.environ)
    (key, *_) = await trio.to_thread.run_sync(
        lambda: [one for one in seaweed.keys(bucket) if "/dt=" in one]
    )
    (extension,) = Path(duckdb_extension_httpfs.__file__).parent.rglob("*.duckdb_extension")
    day = re.findall("dt=([^/]+)", key)[0]
    text = changed(
        configuration("DuckDB and S3"),
        **{
            "INSTALL httpfs;\nLOAD httpfs;": f"LOAD '{extension}';",
            "'AKIA…'": f"'{seaweed.access_key}'",
            "SECRET '…'": f"SECRET '{seaweed.secret_key}'",
            "REGION 'eu-west-3'": "REGION 'us-east-1', URL_STYLE 'path', USE_SSL false,"
            f" ENDPOINT '{seaweed.endpoint.removeprefix('http://')}'",
            "my-bucket": bucket,
            DAY: day,
        },
    )

    def count() -> list[Any]:
        with duckdb.connect() as connection:
            return connection.execute(text).fetchall()

    assert await trio.to_thread.run_sync(count) == [(3,)]


def test_the_table_of_athena_has_the_columns_and_the_partitions_of_objects() -> None:
    """A query would find no rows, or columns of other types.

    Sources: "CREATE TABLE" and "Supported types for partition projection", Athena user guide.
    """
    text = configuration("Athena")
    columns = dict(re.findall(r"^  `(\w+)` ([\w(),]+?),?$", text, re.MULTILINE))
    fields = arrow_schema(schema_of(schema_lines()))
    assert columns == {field.name: _ATHENA_TYPES[str(field.type)] for field in fields}
    partitions = re.findall(r"`(\w+)` string", text.partition("PARTITIONED BY")[2])
    properties = dict(re.findall(r"^  '([^']+)' = '([^']*)',?$", text, re.MULTILINE))
    allowed = {"date": {"format", "range"}, "integer": {"range", "digits"}}
    expected = {"projection.enabled", "storage.location.template"}
    for name in partitions:
        kind = properties[f"projection.{name}.type"]
        expected |= {f"projection.{name}.{part}" for part in {"type", *allowed[kind]}}
    assert set(properties) == expected
    settings = load({"STREAMS": "clicks", "OBJECT_FORMAT": "parquet"})
    (job_id,) = IdSource().new_ids(1)
    layout = Layout.of(settings, "clicks")
    key = KeyTemplate.parse(layout.template).render(job_id) + FORMATS["parquet"].suffix
    location = properties["storage.location.template"]
    values = dict(re.findall(r"(\w+)=([^/]+)/", key))
    for name in partitions:
        location = location.replace(f"${{{name}}}", values[name])
    assert f"s3://my-bucket/telemetry/{key}".startswith(location)
    assert location.endswith("/")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d,NOW", properties["projection.dt.range"])
    assert len(values["hour"]) == int(properties["projection.hour.digits"])


@pytest.mark.large
async def test_the_recipe_for_pyspark_counts_what_was_posted(tmp_path: Path) -> None:
    """A user would copy a program that fails, or that misses payloads."""
    pytest.importorskip("pyspark")
    day, hour = await store_events(tmp_path)
    (tmp_path / "recipe.py").write_text(recipe("PySpark", tmp_path, day, hour))
    done = await trio.run_process(
        [sys.executable, "recipe.py"],
        cwd=tmp_path,
        stdin=b"",
        capture_stdout=True,
        stderr=subprocess.STDOUT,
    )
    assert re.findall(r"(de|fr)\W+(\d)", done.stdout.decode()) == [("de", "2"), ("fr", "1")]
