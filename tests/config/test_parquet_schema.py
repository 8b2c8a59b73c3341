"""The schema of Parquet: its file, and what contradicts other settings."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.config.parquet_schema import (
    Column,
    ParquetSchema,
    object_format,
    parquet_schema,
    partitions_of,
    schema_of,
)
from payloadd.config.settings import load
from payloadd.errors import SettingsError
from payloadd.model.layout import Layout

if TYPE_CHECKING:
    from pathlib import Path


def test_a_line_is_a_column() -> None:
    """A column would have another type, or the values of another member."""
    schema = schema_of(
        """
        # comment
        time      timestamp_ms
        price     decimal(12,2)  $.order.lines[0]['unit price']
        Größe     string
        _payload  misfits
        """.replace("Größe", "size_").splitlines()
    )
    assert schema == ParquetSchema(
        (
            Column("time", "timestamp_ms", ("time",)),
            Column("price", "decimal", ("order", "lines", 0, "unit price"), 12, 2),
            Column("size_", "string", ("size_",)),
        ),
        "misfits",
    )


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("a", "a has no type; types are boolean, int32"),
        ("a integer", "'integer' is no type; types are"),
        ("a decimal(40,2)", "decimal(40,2) has too many digits"),
        ("a decimal(2,4)", "decimal(2,4) has too many digits"),
        ("1a string", "'1a' is no name of a column"),
        ("_ID string", "'_ID' is no name of a column"),
        ("x string", "x is there twice"),
        ("a string $", "'$' is no path"),
        ("a string $[0]", "'$[0]' is no path"),
        ("a string a.b", "'a.b' is no path"),
        ("a string $.a..b", "'$.a..b' is no path"),
        ("_payload maybe", "_payload is followed by one of always, misfits, off"),
        ("_payload", "_payload is followed by one of always, misfits, off"),
    ],
)
def test_a_wrong_line_is_named_with_what_is_allowed(
    tmp_path: Path, line: str, problem: str
) -> None:
    """An operator would have to guess which line is wrong."""
    file = tmp_path / "schema"
    file.write_text(f"X int64\n{line}\n")
    with pytest.raises(SettingsError) as caught:
        load({"PARQUET_SCHEMA": str(file)})
    (found,) = caught.value.problems
    start = f"PARQUET_SCHEMA: '{file}' is not allowed; allowed is a file whose line 2 is right: "
    assert found.startswith(start + problem)


def test_a_file_that_is_no_schema_is_refused(tmp_path: Path) -> None:
    """Objects would have no columns, and nothing would say why."""
    for content in (b"", b"# only a comment\n", b"_payload off\n", b"\xff\xfe"):
        (tmp_path / "schema").write_bytes(content)
        with pytest.raises(ValueError, match=r"at least one column|not UTF-8"):
            parquet_schema(str(tmp_path / "schema"))
    with pytest.raises(ValueError, match="more than 1000 columns"):
        schema_of([f"c{index} string" for index in range(1001)])


@given(st.lists(st.text(alphabet="ab_ .$[]'()1,\tint64string", max_size=30)))
def test_no_text_crashes_the_parser(lines: list[str]) -> None:
    """An operator would see a traceback instead of an error message."""
    try:
        schema = schema_of(lines)
    except ValueError:
        return
    assert schema.columns


def test_parquet_needs_pyarrow() -> None:
    """Every upload would fail after the 202, instead of the start."""
    with (
        patch("payloadd.config.parquet_schema.find_spec", return_value=None),
        pytest.raises(ValueError, match=r"pip install 'payloadd\[parquet\]'"),
    ):
        object_format("parquet")


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({"KEY_TEMPLATE": "{date}/{id}.ndjson"}, "KEY_TEMPLATE: '{date}/{id}.ndjson' is not all"),
        ({"COMPRESSION": "gzip"}, "COMPRESSION: 'gzip' is not allowed with OBJECT_FORMAT=parquet"),
        ({"PARQUET_SORT_BY": "Hour"}, "PARQUET_SORT_BY: Hour is not allowed; allowed are _id, _ac"),
        ({"KEY_TEMPLATE": "x/HOUR={hour}/{id}"}, "PARQUET_SCHEMA: the column Hour is not allowed"),
    ],
)
def test_settings_that_contradict_parquet_are_reported(
    tmp_path: Path, environ: dict[str, str], problem: str
) -> None:
    """Files would have misleading names, or a column that a partition of readers hides."""
    if "HOUR" in environ.get("KEY_TEMPLATE", ""):
        (tmp_path / "schema").write_text("Hour int32\n")
        environ = environ | {"PARQUET_SCHEMA": str(tmp_path / "schema")}
    with pytest.raises(SettingsError) as caught:
        load({"OBJECT_FORMAT": "parquet", **environ})
    assert [one[: len(problem)] for one in caught.value.problems] == [problem]


def test_keys_of_parquet_end_in_its_suffix() -> None:
    """Readers that look for *.parquet would not find the objects, or find them as .ndjson."""
    environ = {"OBJECT_FORMAT": "parquet"}
    assert load(environ).key_template == "dt={date}/hour={hour}/{id}"
    streams = load({**environ, "STREAMS": "a"})
    assert streams.key_template == "{stream}/dt={date}/hour={hour}/{id}"
    layout = Layout.of(load({**environ, "KEY_TEMPLATE": "{id}.parquet"}))
    assert (layout.template, layout.format_name) == ("{id}", "parquet")
    assert Layout.of(load({"KEY_TEMPLATE": "{id}.parquet"})).template == "{id}.parquet"


def test_partitions_are_found_in_templates() -> None:
    """A column of an object would have the name of a partition."""
    assert partitions_of("{stream}/Dt={date}/hour={hour}/x-{id}=y") == {"dt", "hour"}
