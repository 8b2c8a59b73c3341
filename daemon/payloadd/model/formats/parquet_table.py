"""The jobs of a batch as one Parquet file, made with pyarrow; the daemon itself does not import it.

Payloads are converted some thousand at a time, so that their Python objects take little memory. A
column whose values all have the type that Arrow expects is converted by Arrow; any other column
value by value, by ``parquet_values``, to the same result.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain, islice, repeat
from typing import TYPE_CHECKING, Any, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from payloadd.config.parquet_schema import (
    ACCEPTED_AT,
    ID,
    NAME,
    OWN_COLUMNS,
    PAYLOAD,
    Column,
    ParquetSchema,
)
from payloadd.model.formats.parquet_messages import VERSION
from payloadd.model.formats.parquet_values import (
    EARLIEST,
    LATEST,
    MISFIT,
    ValueReader,
    converter_of,
)
from payloadd.model.job import id_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from payloadd.model.formats.parquet_messages import ParquetOptions, TableJobs

_WINDOW: Final = 2 * 2**20
"""Bytes of payloads that are converted at a time."""
_ROWS_OF_GROUP: Final = 122_880
"""Rows of a row group: the size with which DuckDB reads in parallel (its "Parquet Tips")."""
_ZSTD_LEVEL: Final = 3
_MOST_SEEN: Final = 100
"""Columns of an object whose columns are the members that its payloads have."""
_TIME: Final = pa.timestamp("us", tz="UTC")
_ARROW: Final = {
    "boolean": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "string": pa.string(),
    "json": pa.string(),
    "date": pa.date32(),
    "timestamp": _TIME,
    "timestamp_ms": _TIME,
    "timestamp_us": _TIME,
    "timestamp_ns": _TIME,
}
_NONE: Final = type(None)
_TAKEN_AS_THEY_ARE: Final[dict[str, set[type]]] = {
    "boolean": {_NONE, bool},
    "int32": {_NONE, int},
    "int64": {_NONE, int},
    "double": {_NONE, int, float},
    "string": {_NONE, str},
    "json": {_NONE, str},
}
"""Types of values of which Arrow makes the same as ``parquet_values``, or raises an error."""
_ARROW_TIME: Final = (
    r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)$"
)
"""The times of RFC 3339 that Arrow reads as ``parquet_values`` does."""
_SEEN_TYPES: Final = {
    frozenset({bool}): "boolean",
    frozenset({int}): "int64",
    frozenset({float}): "double",
    frozenset({int, float}): "double",
    frozenset({str}): "string",
}


def encode_table(jobs: TableJobs, options: ParquetOptions) -> tuple[pa.Buffer, dict[str, int]]:
    """Return the bytes of a Parquet file, and by column the number of values that do not fit."""
    schema = options.schema
    if schema.seen:
        columns = seen_columns(jobs.lines, options.partitions)
        schema = ParquetSchema(columns, schema.payload)
    builder = _Builder(schema)
    ids = chain.from_iterable(map(_row_ids, jobs.ids, jobs.payloads))
    times = chain.from_iterable(map(_row_times, jobs.ids, jobs.payloads))
    for lines in _slices(jobs.lines):
        builder.add(list(islice(ids, len(lines))), list(islice(times, len(lines))), lines)
    table = builder.table()
    if table.num_rows != sum(jobs.payloads):
        raise ValueError(f"{table.num_rows} lines instead of {sum(jobs.payloads)}")
    order = [(name, "ascending") for name in options.sort_by if name in table.column_names]
    if order:
        table = table.take(pc.sort_indices(table, order))
    return _written(table, schema, order, jobs), dict(builder.misfits)


def seen_columns(lines: bytes, partitions: frozenset[str] = frozenset()) -> tuple[Column, ...]:
    """Return a column for each member that has scalars of one type in all payloads, by name.

    Members whose name no column may have are left out, as those beyond the first hundred.
    """
    kinds: dict[str, set[type]] = {}
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    for payload in chain.from_iterable(_slices(lines)):
        try:
            members = decode(payload)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            continue
        for name, value in members.items():
            if name in kinds:
                kinds[name].add(type(value))
            elif len(kinds) < 10 * _MOST_SEEN:
                kinds[name] = {type(value)}
    columns: dict[str, Column] = {}
    for name, found in sorted(kinds.items()):
        kind = _SEEN_TYPES.get(frozenset(found - {_NONE}))
        lower = name.lower()
        if kind and NAME.fullmatch(name) and lower not in {*OWN_COLUMNS, *partitions, *columns}:
            columns[lower] = Column(name, kind, (name,))
    return tuple(islice(columns.values(), _MOST_SEEN))


class _Builder:
    """Collects the rows of one file."""

    def __init__(self, schema: ParquetSchema) -> None:
        self._columns = schema.columns
        self._payload = schema.payload
        self._reader = ValueReader(schema.columns)
        self._schema = arrow_schema(schema)
        self._batches: list[pa.RecordBatch] = []
        self.misfits: Counter[str] = Counter()
        """By column, the number of values that do not fit."""

    def add(self, ids: list[str], times: list[int], lines: list[bytes]) -> None:
        """Add a row for each payload."""
        rows, others = self._reader.rows(lines) if self._columns else ([], [])
        if others:
            self.misfits[PAYLOAD] += len(others)
        incomplete = set(others)
        arrays = [pa.array(ids, pa.string()), pa.array(times, _TIME)]
        for column, values in zip(self._columns, self._reader.values(rows), strict=True):
            array, misfits = _array(column, values)
            arrays.append(array)
            if misfits:
                self.misfits[column.name] += len(misfits)
                incomplete.update(misfits)
        if self._payload != "off":
            arrays.append(_payload_array(lines, None if self._payload == "always" else incomplete))
        self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))

    def table(self) -> pa.Table:
        """Return all rows."""
        return pa.Table.from_batches(self._batches, self._schema)


def arrow_schema(schema: ParquetSchema) -> pa.Schema:
    """Return the columns of a file: ``_id``, ``_accepted_at``, those of the schema, the payload."""
    return pa.schema(
        [
            pa.field(ID, pa.string(), nullable=False),
            pa.field(ACCEPTED_AT, _TIME, nullable=False),
            *(pa.field(column.name, _arrow_type(column)) for column in schema.columns),
            *([] if schema.payload == "off" else [pa.field(PAYLOAD, pa.string())]),
        ]
    )


def _arrow_type(column: Column) -> pa.DataType:
    if column.type == "decimal":
        return pa.decimal128(column.digits, column.scale)
    return _ARROW[column.type]


def _array(column: Column, values: list[Any]) -> tuple[pa.Array, list[int]]:
    """Return the values of a column, and the indexes of those that do not fit: they are null."""
    arrow_type = _arrow_type(column)
    kinds = set(map(type, values))
    if kinds <= _TAKEN_AS_THEY_ARE.get(column.type, {_NONE}):
        try:
            return pa.array(values, arrow_type), []
        except (pa.ArrowException, OverflowError, ValueError):
            pass
    if arrow_type is _TIME and kinds <= {_NONE, str}:
        array = _times(values)
        if array is not None:
            return array, []
    convert = converter_of(column)
    converted = [None if value is None else convert(value) for value in values]
    misfits = [index for index, value in enumerate(converted) if value is MISFIT]
    for index in misfits:
        converted[index] = None
    return pa.array(converted, arrow_type), misfits


def _times(values: list[str | None]) -> pa.Array | None:
    """Return times that are texts; None if one of them is not of the usual form."""
    texts = pa.array(values, pa.string())
    if pc.all(pc.match_substring_regex(texts, _ARROW_TIME), min_count=0).as_py():
        try:
            times = texts.cast(_TIME)
        except pa.ArrowInvalid:
            return None
        least, most = pc.min_max(times.cast(pa.int64())).values()
        if least.as_py() is None or (least.as_py() >= EARLIEST and most.as_py() <= LATEST):
            return times
    return None


def _payload_array(lines: list[bytes], only: set[int] | None) -> pa.Array:
    """Return the payloads as text; ``only``: those with these indexes, the others are null."""
    kept: list[bytes | None] = [*lines]
    if only is not None:
        kept = [line if index in only else None for index, line in enumerate(lines)]
    return pa.array(kept, pa.string())


def _written(
    table: pa.Table, schema: ParquetSchema, order: list[tuple[str, str]], jobs: TableJobs
) -> pa.Buffer:
    """Return the bytes of the file."""
    texts = {ID, PAYLOAD, *(column.name for column in schema.columns if column.type == "json")}
    sink = pa.BufferOutputStream()
    sorting = pq.SortingColumn.from_ordering(table.schema, order, "at_end") if order else None
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        compression_level=_ZSTD_LEVEL,
        # A dictionary of texts that are all different, and their bounds, only make a file larger.
        use_dictionary=[name for name in table.column_names if name not in texts],
        write_statistics=[name for name in table.column_names if name not in texts - {ID}],
        sorting_columns=sorting,
        store_schema=False,
    ) as writer:
        writer.write_table(table, row_group_size=_ROWS_OF_GROUP)
        writer.add_key_value_metadata(
            {
                "payloadd.format": VERSION,
                "payloadd.payloads": str(table.num_rows),
                "payloadd.first": id_text(jobs.ids[0]),
                "payloadd.last": id_text(jobs.ids[-1]),
            }
        )
    return sink.getvalue()


def _row_ids(job: int, payloads: int) -> list[str]:
    """Return the ids of a job's payloads: the id of the job and the index of the payload."""
    text = id_text(job)
    return [f"{text}-{index}" for index in range(payloads)]


def _row_times(job: int, payloads: int) -> repeat[int]:
    """Return the time of acceptance of each payload, in microseconds since 1970."""
    return repeat((job >> 80) * 1000, payloads)


def _slices(text: bytes) -> Iterator[list[bytes]]:
    """Yield the lines of NDJSON, as many at a time as fit into the window, at least one."""
    start = 0
    while start < len(text):
        end = text.rfind(b"\n", start, start + _WINDOW) + 1
        if not end:
            end = text.find(b"\n", start + _WINDOW) + 1 or len(text)
        yield text[start : end - 1].split(b"\n")
        start = end
