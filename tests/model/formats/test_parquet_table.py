"""Parquet files: their columns, read back by pyarrow, DuckDB and polars."""

from __future__ import annotations

import io
import json
import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payloadd.config.parquet_schema import ParquetSchema, schema_of
from payloadd.model.formats import parquet_table
from payloadd.model.formats.parquet_messages import ParquetOptions, TableJobs
from payloadd.model.formats.parquet_table import encode_table, seen_columns
from payloadd.model.formats.parquet_values import MISFIT, ValueReader, converter_of

if TYPE_CHECKING:
    from pathlib import Path

JOB: Final = (1_764_235_800_123 << 80) | 5
"""The id of a job that was accepted at 2025-11-27T09:30:00.123Z."""
ACCEPTED: Final = datetime(2025, 11, 27, 9, 30, 0, 123_000, tzinfo=UTC)
EVERY_TYPE: Final = """
    flag     boolean
    small    int32
    number   int64
    ratio    float
    double   double
    text     string         $.nested.text
    items    json
    day      date
    time     timestamp
    price    decimal(12,2)
"""
FULL: Final = (
    b'{"flag":true,"small":-5,"number":9007199254740993,"ratio":0.5,"double":0.1,'
    b'"nested":{"text":"\xc3\xbc"},"items":[1, 2.50],"day":"2026-02-28",'
    b'"time":"2025-11-27T09:30:00.123456Z","price":12.10}'
)


def jobs_of(*jobs: list[bytes]) -> TableJobs:
    """Return jobs with these payloads; their ids follow each other."""
    return TableJobs(
        [JOB + index for index in range(len(jobs))],
        [len(payloads) for payloads in jobs],
        b"".join(b"%b\n" % payload for payloads in jobs for payload in payloads),
    )


def written(
    jobs: TableJobs, schema: str = "", sort_by: tuple[str, ...] = ()
) -> tuple[bytes, dict[str, int]]:
    """Return the file of jobs, and its misfits; ``schema``: the lines of a schema's file."""
    parsed = schema_of(schema.splitlines()) if schema else ParquetSchema()
    content, misfits = encode_table(jobs, ParquetOptions(parsed, sort_by))
    return bytes(content), misfits


def rows_of(content: bytes) -> list[dict[str, Any]]:
    """Return the rows of a file."""
    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(content)).to_pylist()
    return rows


def test_without_a_schema_there_are_three_columns() -> None:
    """A payload could not be found by its id, or would not be as it was posted."""
    content, misfits = written(jobs_of([b'{"a": 1.50}', b"[]"], [b'"x"']))
    first, second = (str(uuid.UUID(int=JOB + index)) for index in range(2))
    assert rows_of(content) == [
        {"_id": f"{first}-0", "_accepted_at": ACCEPTED, "_payload": '{"a": 1.50}'},
        {"_id": f"{first}-1", "_accepted_at": ACCEPTED, "_payload": "[]"},
        {"_id": f"{second}-0", "_accepted_at": ACCEPTED, "_payload": '"x"'},
    ]
    assert not misfits
    metadata = pq.read_metadata(io.BytesIO(content)).metadata
    assert metadata == {
        b"payloadd.format": b"parquet-1",
        b"payloadd.payloads": b"3",
        b"payloadd.first": first.encode(),
        b"payloadd.last": second.encode(),
    }


def test_every_type_is_read_by_every_reader(tmp_path: Path) -> None:
    """A reader would see other values than those that were posted, or none."""
    content, misfits = written(jobs_of([FULL, b"{}"]), EVERY_TYPE)
    (tmp_path / "a.parquet").write_bytes(content)
    wanted = {
        "flag": True, "small": -5, "number": 9007199254740993, "ratio": 0.5, "double": 0.1,
        "text": "ü", "items": "[1, 2.50]", "day": date(2026, 2, 28),
        "time": datetime(2025, 11, 27, 9, 30, 0, 123_456, tzinfo=UTC), "price": Decimal("12.10"),
    }  # fmt: skip
    columns = ", ".join(name for name in wanted if name != "time")
    found = {
        "pyarrow": rows_of(content),
        "polars": pl.read_parquet(tmp_path / "a.parquet").to_dicts(),
        "duckdb": duckdb.sql(
            f"SELECT {columns}, epoch_us(time) AS us FROM '{tmp_path}/a.parquet'"
        ).to_arrow_table().to_pylist(),
    }  # fmt: skip
    for reader, (full, empty) in found.items():
        if "us" in full:
            full["time"] = datetime.fromtimestamp(full["us"] / 1e6, UTC)
            empty["time"] = empty["us"]
        assert {name: full[name] for name in wanted} == wanted, reader
        assert {empty[name] for name in wanted} == {None}, reader
    assert not misfits


def test_a_value_that_does_not_fit_is_null_and_in_the_payload() -> None:
    """A value would be lost, or would make a dead letter of all others."""
    bad = b'{"flag":1,"small":3000000000,"number":"5","price":1.005,"time":"soon","day":7}'
    content, misfits = written(jobs_of([FULL, bad, b"7"]), EVERY_TYPE)
    _, row, scalar = rows_of(content)
    assert {row[name] for name in ("flag", "small", "number", "price", "time", "day")} == {None}
    assert row["_payload"] == bad.decode()
    assert scalar["_payload"] == "7"
    names = ("flag", "small", "number", "price", "time", "day", "_payload")
    assert misfits == dict.fromkeys(names, 1)


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ("always", ['{"a":1}', '{"a":"x"}', "5"]),
        ("misfits", [None, '{"a":"x"}', "5"]),
        ("off", None),
    ],
)
def test_the_payload_is_kept_as_the_schema_says(choice: str, wanted: list[str] | None) -> None:
    """A column of the size of all others could not be left out, or would lose what did not fit."""
    jobs = jobs_of([b'{"a":1}', b'{"a":"x"}', b"5"])
    content, _ = written(jobs, f"a int64\n_payload {choice}\n")
    rows = rows_of(content)
    assert [row["a"] for row in rows] == [1, None, None]
    assert (None if wanted is None else [row["_payload"] for row in rows]) == wanted
    assert ("_payload" in rows[0]) == (wanted is not None)


def test_rows_are_sorted_as_the_settings_say_and_else_in_order_of_acceptance() -> None:
    """A reader that looks for one user would read every row group."""
    payloads = [b'{"u":%d,"t":%d}' % (index * 7 % 5, -index) for index in range(10)] + [b"{}"]
    jobs = jobs_of(payloads)
    in_order, _ = written(jobs, "u int32\nt int64\n")
    assert [row["_payload"] for row in rows_of(in_order)] == [one.decode() for one in payloads]
    content, _ = written(jobs, "u int32\nt int64\n", ("u", "t"))
    found = [(row["u"], row["t"]) for row in rows_of(content)]
    assert found[:-1] == sorted(found[:-1])
    assert found[-1] == (None, None)
    group = pq.read_metadata(io.BytesIO(content)).row_group(0)
    assert [one.column_index for one in group.sorting_columns] == [2, 3]


def test_pages_are_compressed_with_zstd_and_columns_have_statistics() -> None:
    """Readers could not skip row groups, or would read twice the bytes."""
    payloads = [b'{"a":%d,"b":"%d"}' % (index, index % 3) for index in range(1000)]
    content, _ = written(jobs_of(payloads), "a int64\nb string\n")
    group = pq.read_metadata(io.BytesIO(content)).row_group(0)
    columns = {
        group.column(index).path_in_schema: group.column(index)
        for index in range(group.num_columns)
    }
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    assert (columns["a"].statistics.min, columns["a"].statistics.max) == (0, 999)
    assert (columns["b"].statistics.min, columns["b"].statistics.max) == ("0", "2")
    assert columns["b"].has_dictionary_page
    assert not columns["_payload"].has_dictionary_page
    assert columns["_payload"].statistics is None
    assert columns["_id"].statistics is not None


def test_jobs_that_are_converted_in_slices_make_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a large batch would be lost or doubled at the borders of slices."""
    jobs = jobs_of(*[[b'{"a":%d}' % (10 * job + index) for index in range(10)]
                     for job in range(50)], [b'"%b"' % (b"x" * 1000)])  # fmt: skip
    whole, _ = written(jobs, "a int64\n")
    monkeypatch.setattr(parquet_table, "_WINDOW", 100)
    content, misfits = written(jobs, "a int64\n")
    assert rows_of(content) == rows_of(whole)
    assert [row["a"] for row in rows_of(content)] == [*range(500), None]
    assert misfits == {"_payload": 1}
    with pytest.raises(ValueError, match="501 lines instead of 502"):
        written(TableJobs(jobs.ids, [11, *jobs.payloads[1:]], jobs.lines))


def test_columns_that_a_batch_has_are_found_if_they_have_one_type() -> None:
    """A column would have values of two types, or a name that readers refuse."""
    payloads = [
        {"n": 1, "f": 1, "s": "x", "b": True, "none": None, "mixed": 1, "a b": 1, "list": [],
         "object": {}, "_id": 1, "S": "y", "dt": "2026", "big": 2**70},
        {"n": None, "f": 1.5, "mixed": "x", "late": "z", "big": 1},
    ]  # fmt: skip
    lines = b"".join(json.dumps(payload).encode() + b"\n" for payload in payloads) + b"5\n1e999\n"
    found = seen_columns(lines, frozenset({"dt"}))
    assert [(column.name, column.type) for column in found] == [
        ("S", "string"), ("b", "boolean"), ("big", "int64"), ("f", "double"), ("late", "string"),
        ("n", "int64"),
    ]  # fmt: skip
    jobs = TableJobs([JOB], [4], lines)
    content, misfits = encode_table(jobs, ParquetOptions(ParquetSchema(seen=True), ("n", "no")))
    assert misfits == {"_payload": 2, "big": 1}
    assert [row["n"] for row in rows_of(bytes(content))] == [1, None, None, None]


def test_a_batch_has_at_most_a_hundred_columns_of_its_own() -> None:
    """Keys that are values, such as ids, would make an object of a million columns."""
    lines = b"".join(b'{"k%d":1}\n' % index for index in range(5000))
    assert len(seen_columns(lines)) == 100


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(exclude_categories=["Cs"]))
    | st.datetimes().map(lambda one: one.isoformat() + "Z") | st.dates().map(str)
)  # fmt: skip
PAYLOADS = st.dictionaries(st.sampled_from("abcdefghij"), SCALARS | st.lists(SCALARS), max_size=10)


@settings(deadline=None, max_examples=100)
@given(st.lists(PAYLOADS | SCALARS, min_size=1, max_size=8))
def test_any_payloads_are_encoded_as_value_by_value(payloads: list[Any]) -> None:
    """The value of a column would depend on the other payloads of the object."""
    schema = schema_of(
        ["a boolean", "b int32", "c int64", "d float", "e double", "f string", "g date",
         "h timestamp", "i timestamp_ms", "j decimal(9,2)"]
    )  # fmt: skip
    lines = [json.dumps(payload).encode() for payload in payloads]
    content, misfits = encode_table(jobs_of(lines), ParquetOptions(schema))
    rows = pq.read_table(pa.BufferReader(content))
    counted = 0
    for column in schema.columns:
        reader = ValueReader((column,))
        for index, line in enumerate(lines):
            ((value,),) = reader.values(reader.rows([line])[0])
            wanted = None if value is None else converter_of(column)(value)
            counted += wanted is MISFIT
            found = rows[column.name][index]
            if wanted is MISFIT or wanted is None:
                assert not found.is_valid
            elif column.type.startswith("timestamp"):
                assert found.value == wanted
            else:
                assert found.as_py() == pa.scalar(wanted, found.type).as_py()
    others = sum(not isinstance(payload, dict) for payload in payloads)
    assert sum(misfits.values()) == counted + others
    assert pc.all(pc.equal(rows["_payload"], pa.array(lines, pa.string()))).as_py()
