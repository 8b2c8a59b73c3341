"""Values of columns: how they are found in payloads, and what fits into a type."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.config.parquet_schema import Column, schema_of
from payloadd.model.formats.parquet_values import (
    EARLIEST,
    LATEST,
    MISFIT,
    ValueReader,
    converter_of,
)

TIME = 1_764_235_800_123_456
"""2025-11-27T09:30:00.123456Z in microseconds."""


def convert(column: str, value: Any) -> object:  # noqa: ANN401 - any JSON value
    """Return a value in the type of a column, such as ``int32``."""
    (found,) = schema_of([f"x {column}"]).columns
    return converter_of(found)(value)


def read(column: str, payload: bytes) -> object:
    """Return the value of a column, such as ``string $.a.b``, in a payload."""
    reader = ValueReader(schema_of([f"x {column}"]).columns)
    rows, _ = reader.rows([payload])
    ((value,),) = reader.values(rows)
    return value


@pytest.mark.parametrize(
    ("column", "value", "wanted"),
    [
        ("boolean", True, True),
        ("boolean", 1, MISFIT),
        ("boolean", "true", MISFIT),
        ("int32", 2**31 - 1, 2**31 - 1),
        ("int32", 2**31, MISFIT),
        ("int32", -(2**31), -(2**31)),
        ("int64", 5.0, 5),
        ("int64", 5.5, MISFIT),
        ("int64", 1e300, MISFIT),
        ("int64", 2.0**53, 2**53),
        ("int64", 2.0**53 + 2, MISFIT),  # another integer may have become this float
        ("int64", 2**63, MISFIT),
        ("int64", True, MISFIT),
        ("int64", "5", MISFIT),
        ("double", 5, 5.0),
        ("double", 10**400, MISFIT),
        ("double", "5", MISFIT),
        ("double", False, MISFIT),
        ("float", 1.5, 1.5),
        ("float", 1e39, MISFIT),
        ("float", 3.4028234663852886e38, 3.4028234663852886e38),
        ("float", -3.4028234663852886e38, -3.4028234663852886e38),
        ("string", "ü\0", "ü\0"),
        ("string", 5, MISFIT),
        ("string", {"a": 1}, MISFIT),
        ("date", "2026-02-28", date(2026, 2, 28)),
        ("date", "2026-02-30", MISFIT),
        ("date", "20260228", MISFIT),
        ("date", 5, MISFIT),
        ("timestamp", "2025-11-27T09:30:00.123456Z", TIME),
        ("timestamp", "2025-11-27t11:30:00.123456789+02:00", TIME),
        ("timestamp", "2025-11-27 04:00:00.123456-05:30", TIME),
        ("timestamp", "2025-11-27T09:30:00.5Z", TIME + 376_544),
        ("timestamp", "0001-01-01T00:00:00Z", EARLIEST),
        ("timestamp", "9999-12-31T23:59:59.999999Z", LATEST),
        ("timestamp_us", EARLIEST, EARLIEST),
        ("timestamp_us", EARLIEST - 1, MISFIT),
        ("timestamp_us", LATEST, LATEST),
        ("timestamp_us", LATEST + 1, MISFIT),
        ("timestamp", "2025-11-27T09:30:00", MISFIT),
        ("timestamp", "2025-11-27T09:30Z", MISFIT),
        ("timestamp", "2025-11-27", MISFIT),
        ("timestamp", "2016-12-31T23:59:60Z", MISFIT),
        ("timestamp", "2025-11-27T24:00:00Z", MISFIT),
        ("timestamp", "2025-11-27T09:30:00+24:00", MISFIT),
        ("timestamp", "2025-11-27T09:30:00+01:60", MISFIT),
        ("timestamp", "0001-01-01T00:00:00+01:00", MISFIT),
        ("timestamp", "9999-12-31T23:59:59-01:00", MISFIT),
        ("timestamp", "٢٠٢٥-11-27T09:30:00Z", MISFIT),
        ("timestamp", 1_764_235_800, 1_764_235_800_000_000),
        ("timestamp", 1764235800.123456, TIME),
        ("timestamp", 0.1, 100_000),
        ("timestamp_ms", 1_764_235_800_123, 1_764_235_800_123_000),
        ("timestamp_us", TIME, TIME),
        ("timestamp_ns", TIME * 1000 + 999, TIME),
        ("timestamp_ns", -1, -1),
        ("timestamp", 10**13, MISFIT),
        ("timestamp_ns", 10**40, MISFIT),
        ("timestamp", 1e300, MISFIT),
        ("timestamp", True, MISFIT),
        ("timestamp", None, MISFIT),
        ("decimal(5,2)", "12.5", Decimal("12.50")),
        ("decimal(5,2)", '"-999.99"', Decimal("-999.99")),
        ("decimal(5,2)", "1000", MISFIT),
        ("decimal(5,2)", "1.005", MISFIT),
        ("decimal(5,2)", "1.500", Decimal("1.50")),
        ("decimal(5,2)", "1e2", Decimal(100)),
        ("decimal(5,2)", "1e999999999", MISFIT),
        ("decimal(5,2)", "1e-999999999", MISFIT),
        ("decimal(5,2)", "0e999999999", Decimal(0)),
        ("decimal(5,2)", "true", MISFIT),
        ("decimal(5,2)", '" 1"', MISFIT),
        ("decimal(38,0)", "9" * 38, Decimal("9" * 38)),
        ("decimal(38,38)", "0." + "1" * 39, MISFIT),
        ("json", '{"a": [1]}', '{"a": [1]}'),
    ],
)
def test_what_fits_is_converted_and_nothing_else(
    column: str, value: object, wanted: object
) -> None:
    """A column would have a value that the payload has not, or lack one that it has."""
    found = convert(column, value)
    assert (found, type(found)) == (wanted, type(wanted))


@given(st.datetimes(timezones=st.timezones()))
def test_every_time_of_rfc_3339_is_read_as_its_moment(moment: datetime) -> None:
    """A timestamp would be another moment."""
    text = moment.isoformat()
    if moment.utcoffset() is None or text.count(":") != 3:  # offsets with seconds are not RFC 3339
        return
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    counted = (moment - epoch) // timedelta(microseconds=1)
    assert convert("timestamp", text) in {counted, MISFIT}
    if 2 <= moment.year <= 9998:
        assert convert("timestamp", text) == counted


@given(st.integers(-62_135_596_799, 253_402_300_798), st.integers(0, 999_999))
def test_seconds_with_a_fraction_are_read_to_the_microsecond(second: int, part: int) -> None:
    """A timestamp would be off by the rounding of a binary fraction."""
    value = json.loads(f"{second}.{part:06}")
    wanted = round(Decimal(repr(value)) * 10**6)
    assert convert("timestamp", value) == wanted


@pytest.mark.parametrize(
    ("column", "payload", "wanted"),
    [
        ("string $.a.b", b'{"a": {"b": "x"}}', "x"),
        ("string $.a.b", b'{"a": "x"}', None),
        ("string $.a.b", b'{"a": null}', None),
        ("string $.a.b", b"{}", None),
        ("int64 $.a[1]", b'{"a": [1, 2]}', 2),
        ("int64 $.a[2]", b'{"a": [1, 2]}', None),
        ("int64 $.a[0].b", b'{"a": [{"b": 7}]}', 7),
        ("int64 $.a.b", b'{"a": [1]}', None),
        ("int64 $['a b']['c.d']", b'{"a b": {"c.d": 3}}', 3),
        ("string $.a", '{"\\u0061": "ü"}'.encode(), "ü"),
        ("int64 $.a", b'{"a": 1, "a": 2}', 2),
        ("json $.a", b'{"a" : [ 1.50 ,"x"] }', '[ 1.50 ,"x"]'),
        ("json $.a.b[0]", b'{"a": {"b": [{"c": 1.0}]}}', '{"c": 1.0}'),
        ("json $.a", b'{"a": null}', None),
        ("json $.a.b", b'{"a": 5}', None),
        ("json $.a[0]", b'{"a": []}', None),
        ("decimal(9,2) $.a", b'{"a": 1.10}', "1.10"),
        ("int64 $.a", b"5", None),
        ("int64 $.a", b"[1]", None),
        ("double $.a", b'{"a": 1e999}', MISFIT),
        ("double $.a", b'{"a": 1, "b": 1e999}', 1),
        ("double $.b", b'{"a": 1e999}', None),
        ("double $.a.b", b'{"a": {"b": 1, "c": 1e999}}', MISFIT),
    ],
)
def test_a_path_leads_to_a_value_or_to_nothing(column: str, payload: bytes, wanted: object) -> None:
    """A column would have the value of another member."""
    assert read(column, payload) == wanted


def test_payloads_that_are_no_objects_are_reported() -> None:
    """With `_payload misfits` such a payload would be in no column at all."""
    reader = ValueReader(schema_of(["a int64", "b json"]).columns)
    rows, others = reader.rows([b"5", b'{"a": 1, "b": [2]}', b"[]", b'{"a": 1e999}', b"null"])
    assert others == [0, 2, 4]
    assert list(reader.values(rows)) == [[None, 1, None, MISFIT, None],
                                         [None, "[2]", None, None, None]]  # fmt: skip


def test_one_member_may_have_several_columns() -> None:
    """The second column would be empty, or the text of the value would be lost."""
    columns = schema_of(["a string $.m.x", "b json $.m", "c int64 $.m.n", "d json $.m.x"]).columns
    reader = ValueReader(columns)
    rows, _ = reader.rows([b'{"m": {"x": "y", "n": 3}}', b"{}"])
    assert list(reader.values(rows)) == [
        ["y", None], ['{"x": "y", "n": 3}', None], [3, None], ['"y"', None],
    ]  # fmt: skip


def test_a_value_that_is_nested_too_deeply_is_left_to_the_payload() -> None:
    """One payload would fail the object of all others."""
    deep = b'{"a": %b%b, "b": 1}' % (b"[" * 100_000, b"]" * 100_000)
    reader = ValueReader((Column("a", "string", ("a",)), Column("c", "json", ("a", 0))))
    rows, _ = reader.rows([deep])
    assert len(rows) == 1
    assert [len(values) for values in reader.values(rows)] == [1, 1]
