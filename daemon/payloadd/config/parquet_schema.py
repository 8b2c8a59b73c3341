"""The settings OBJECT_FORMAT, PARQUET_SCHEMA and PARQUET_SORT_BY.

A schema is a file with a column a line: its name, its type, and the JSON path of its value::

    # name    type           path
    time      timestamp      $.ts
    user_id   int64
    country   string         $.geo.country
    price     decimal(12,2)
    items     json           $.items
    _payload  misfits

Without a path a column has the member of its own name. The types are those that Athena, Spark and
DuckDB read alike. Lines that begin with ``#``, and blank lines, are left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from payloadd.config.parsers import one_of

if TYPE_CHECKING:
    from collections.abc import Mapping

ID: Final = "_id"
ACCEPTED_AT: Final = "_accepted_at"
PAYLOAD: Final = "_payload"
OWN_COLUMNS: Final = (ID, ACCEPTED_AT, PAYLOAD)
"""The columns that payloadd adds; a schema has no others with these names."""
TYPES: Final = (
    *("boolean", "int32", "int64", "float", "double", "string", "json", "date"),
    *("timestamp", "timestamp_ms", "timestamp_us", "timestamp_ns"),
)
"""The types without arguments. A number in a ``timestamp`` counts seconds since 1970."""
MOST_COLUMNS: Final = 1000
MOST_DIGITS: Final = 38
"""The digits that a decimal may have, the same in Athena, Spark and DuckDB."""

PayloadColumn = Literal["always", "misfits", "off"]
"""The rows with a text in ``_payload``: all, those with a value that does not fit, none."""

NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
"""A name that needs no quotes in Athena, Spark and DuckDB."""
_PAYLOAD_COLUMNS: Final = ("always", "misfits", "off")
_DECIMAL: Final = re.compile(r"decimal\(([0-9]{1,2}),([0-9]{1,2})\)")
_STEP: Final = re.compile(
    r"""\.(?P<name>[^\s.\[\]'"*$@()]+)|\[(?P<index>[0-9]{1,9})\]|\['(?P<quoted>[^']+)'\]"""
)
"""A step of a JSON path (RFC 9535): the name of a member, or the index of an element."""
_PARTITION: Final = re.compile(r"(?:^|/)([^/={}]+)=")
_ALL_TYPES: Final = ", ".join(TYPES) + " and decimal(digits,scale)"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the schema."""

    name: str
    type: str
    """One of ``TYPES``, or ``decimal``."""
    path: tuple[str | int, ...]
    """The names of members and the indexes of elements that lead to the value."""
    digits: int = 0
    """The digits of a decimal, those behind the point included."""
    scale: int = 0
    """The digits of a decimal behind the point."""


@dataclass(frozen=True, slots=True)
class ParquetSchema:
    """The columns of objects besides payloadd's own."""

    columns: tuple[Column, ...] = ()
    payload: PayloadColumn = "always"
    seen: bool = False
    """Whether the columns are the members with scalars that a batch has."""


def object_format(text: str) -> str:
    """Parse the name of a format; Parquet is refused if pyarrow is not installed."""
    text = one_of("ndjson", "parquet")(text)
    if text == "parquet" and find_spec("pyarrow") is None:
        raise ValueError(
            "ndjson: parquet needs the package pyarrow,"
            " which `pip install 'payloadd[parquet]'` installs"
        )
    return text


def parquet_schema(text: str) -> ParquetSchema:
    """Parse ``auto``, or the path of a schema's file, which is read."""
    if text == "auto":
        return ParquetSchema(seen=True)
    try:
        lines = Path(text).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ValueError(f"auto, or a file that can be read ({reason})") from None
    return schema_of(lines)


def schema_of(lines: list[str]) -> ParquetSchema:
    """Return the schema in the lines of its file. Raises ValueError."""
    columns: list[Column] = []
    payload: PayloadColumn = "always"
    for number, line in enumerate(lines, 1):
        words = line.split(maxsplit=2)
        if not words or words[0].startswith("#"):
            continue
        try:
            if words[0] == PAYLOAD:
                payload = _payload_column(words)
            else:
                columns.append(_column(words))
                _check_new(columns)
        except ValueError as error:
            raise ValueError(f"a file whose line {number} is right: {error}") from None
    if not columns:
        raise ValueError("a file with at least one column, `name type [path]` a line")
    return ParquetSchema(tuple(columns), payload)


def sort_columns(text: str) -> tuple[str, ...]:
    """Parse a comma list of columns, the one that counts most first."""
    names = tuple(part.strip() for part in text.split(","))
    if not all(map(NAME.fullmatch, names)) or len(set(names)) < len(names) or PAYLOAD in names:
        raise ValueError("a comma list of names of columns, each once, and not _payload")
    return names


def parquet_problems(values: Mapping[str, Any]) -> list[str]:
    """Return a line for each contradiction between the parsed settings of Parquet."""
    schema: ParquetSchema | None = values.get("parquet_schema")
    names = [column.name for column in schema.columns] if schema else []
    problems = []
    missing = set(values.get("parquet_sort_by") or ()) - {*names, ID, ACCEPTED_AT}
    if missing and not (schema and schema.seen):
        problems.append(
            f"PARQUET_SORT_BY: {', '.join(sorted(missing))} is not allowed; allowed are"
            f" {', '.join((*names, ID, ACCEPTED_AT))}"
        )
    if values.get("object_format") != "parquet":
        return problems
    template: str = values.get("key_template") or ""
    if template.endswith((".ndjson", ".json")):
        problems.append(
            f"KEY_TEMPLATE: {template!r} is not allowed with OBJECT_FORMAT=parquet; allowed is a"
            " template without .ndjson or .json at its end: .parquet is added"
        )
    if values.get("compression") == "gzip":
        problems.append(
            "COMPRESSION: 'gzip' is not allowed with OBJECT_FORMAT=parquet; allowed is none or"
            " zstd: the pages of Parquet are always compressed with zstd"
        )
    partitions = partitions_of(template)
    problems += [
        f"PARQUET_SCHEMA: the column {name} is not allowed; allowed is a name that KEY_TEMPLATE"
        f" ({template!r}) does not give to a partition"
        for name in names
        if name.lower() in partitions
    ]
    return problems


def partitions_of(template: str) -> frozenset[str]:
    """Return the names of the partitions that a template of keys makes, in lower case."""
    return frozenset(name.lower() for name in _PARTITION.findall(template))


def _payload_column(words: list[str]) -> PayloadColumn:
    if len(words) != 2 or words[1] not in _PAYLOAD_COLUMNS:  # noqa: PLR2004 - name and choice
        raise ValueError(f"{PAYLOAD} is followed by one of {', '.join(_PAYLOAD_COLUMNS)}")
    return cast("PayloadColumn", words[1])


def _column(words: list[str]) -> Column:
    """Return the column of a line. Raises ValueError."""
    name = words[0]
    if not NAME.fullmatch(name) or name.lower() in OWN_COLUMNS:
        raise ValueError(
            f"{name!r} is no name of a column: letters, digits and _, no digit first, at most 128,"
            f" and not {', '.join(OWN_COLUMNS)}"
        )
    if len(words) == 1:
        raise ValueError(f"{name} has no type; types are {_ALL_TYPES}")
    path = _path(words[2].strip()) if len(words) > 2 else (name,)  # noqa: PLR2004 - the third
    match = _DECIMAL.fullmatch(words[1])
    if match:
        digits, scale = int(match[1]), int(match[2])
        if not max(1, scale) <= digits <= MOST_DIGITS:
            raise ValueError(
                f"{words[1]} has too many digits: 1 to {MOST_DIGITS}, and no more behind the point"
            )
        return Column(name, "decimal", path, digits, scale)
    if words[1] not in TYPES:
        raise ValueError(f"{words[1]!r} is no type; types are {_ALL_TYPES}")
    return Column(name, words[1], path)


def _path(text: str) -> tuple[str | int, ...]:
    """Return the steps of a JSON path: ``$.geo.country``, ``$.items[0]``, ``$['a name']``."""
    steps: list[str | int] = []
    end = 1
    while match := _STEP.match(text, end):
        end = match.end()
        steps.append(int(match["index"]) if match["index"] else match["name"] or match["quoted"])
    if text[:1] != "$" or end != len(text) or not steps or isinstance(steps[0], int):
        raise ValueError(
            f"{text!r} is no path: $.member, with .member, ['member'] and [index] behind it"
        )
    return tuple(steps)


def _check_new(columns: list[Column]) -> None:
    """Raise ValueError if the last column has a name that a column before it has."""
    if len(columns) > MOST_COLUMNS:
        raise ValueError(f"more than {MOST_COLUMNS} columns")
    name = columns[-1].name
    if any(one.name.lower() == name.lower() for one in columns[:-1]):
        raise ValueError(f"{name} is there twice, as readers compare names")
