"""The values of Parquet's columns: found in payloads by their paths, and converted to a type.

A value that is missing, or ``null``, is None. A value that does not fit into its column is
``MISFIT``. This module knows nothing of Arrow.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Context, Decimal, DecimalException, Inexact, InvalidOperation
from math import isfinite
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Raw

from payloadd.config.parquet_schema import MOST_DIGITS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from payloadd.config.parquet_schema import Column

MISFIT: Final = object()
"""A value that does not fit into its column."""
EARLIEST: Final = -62_135_596_800_000_000
"""The beginning of the year 1, in microseconds since 1970: readers know no earlier time."""
LATEST: Final = 253_402_300_799_999_999
"""The end of the year 9999, in microseconds since 1970."""

_RAW_TYPES: Final = frozenset({"json", "decimal"})
"""Types whose values are made of the text of the payload."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_UNITS: Final = {
    "timestamp": Decimal(1_000_000),
    "timestamp_ms": Decimal(1000),
    "timestamp_us": Decimal(1),
    "timestamp_ns": Decimal("0.001"),
}
"""Microseconds of the unit in which a timestamp of each type counts."""
_RFC_3339: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))",
    re.ASCII,
)
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_DECIMAL: Final = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d{1,9})?", re.ASCII)
_EXACT: Final = Context(prec=MOST_DIGITS, traps=[InvalidOperation, Inexact])
_LARGEST_FLOAT: Final = 3.4028234663852886e38
"""The largest finite number of IEEE 754's binary32."""
_EXACT_INTEGERS: Final = 2**53
"""Up to this number every integer is a float of its own."""

_UNREADABLE: Final = MISFIT
"""Stands for a value that cannot be decoded, such as a number beyond all floats."""
_decode_members: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_elements: Final = msgspec.json.Decoder(list[Raw]).decode
_decode_any: Final = msgspec.json.Decoder().decode
_ERRORS: Final = (msgspec.MsgspecError, ValueError, RecursionError)


class ValueReader:
    """Reads the values of columns out of payloads."""

    def __init__(self, columns: Sequence[Column]) -> None:
        raw = {column.path[0] for column in columns if column.type in _RAW_TYPES}
        self._names = [str(name) for name in dict.fromkeys(column.path[0] for column in columns)]
        self._fields = {name: f"f{index}" for index, name in enumerate(self._names)}
        # A class with these members alone: msgspec makes no objects of the others.
        self._row: type[Any] = msgspec.defstruct(
            "Row",
            [
                (field, Raw, Raw()) if name in raw else (field, Any, None)
                for name, field in self._fields.items()
            ],
            rename={field: name for name, field in self._fields.items()},
            gc=False,
        )
        self._raw = raw
        self._decode = msgspec.json.Decoder(self._row).decode
        self._values = [self._reader_of(column) for column in columns]

    def rows(self, payloads: Sequence[bytes]) -> tuple[list[Any], list[int]]:
        """Return a row for each payload, and the indexes of payloads that are no objects."""
        decode = self._decode
        try:
            return [decode(payload) for payload in payloads], []
        except _ERRORS:
            pass
        others: list[int] = []
        rows = []
        for index, payload in enumerate(payloads):
            row = self._row_of(payload)
            if row is None:
                others.append(index)
            rows.append(row or self._row())
        return rows, others

    def values(self, rows: list[Any]) -> Iterable[list[Any]]:
        """Yield the values of each column, in the order of the columns."""
        for read in self._values:
            yield read(rows)

    def _row_of(self, payload: bytes) -> Any:  # noqa: ANN401 - an instance of a class made here
        """Return the row of one payload, member by member if needed; None for no object."""
        try:
            return self._decode(payload)
        except _ERRORS:
            pass
        try:
            members = _decode_members(payload)
        except _ERRORS:
            return None
        found = {name: members[name] for name in self._names if name in members}
        return self._row(
            **{
                self._fields[name]: raw if name in self._raw else _decoded(raw)
                for name, raw in found.items()
            }
        )

    def _reader_of(self, column: Column) -> Callable[[list[Any]], list[Any]]:
        """Return the function that returns the values of a column for rows."""
        name, *steps = column.path
        member = attrgetter(self._fields[str(name)])
        if name not in self._raw:
            if not steps:
                return lambda rows: list(map(member, rows))
            return lambda rows: [_follow(member(row), steps) for row in rows]
        if column.type in _RAW_TYPES:
            return lambda rows: [_follow_raw(member(row), steps) for row in rows]
        return lambda rows: [_follow(_decoded(member(row)), steps) for row in rows]


def converter_of(column: Column) -> Callable[[Any], object]:
    """Return the function that converts a value, not None, to the type of a column, or MISFIT."""
    if column.type == "decimal":
        return lambda raw: _decimal(raw, column.digits, column.scale)
    if column.type in _UNITS:
        unit = _UNITS[column.type]
        return lambda value: _timestamp(value, unit)
    return _CONVERTERS[column.type]


def _decoded(raw: Raw) -> Any:  # noqa: ANN401 - any JSON value
    if not len(raw):
        return None
    try:
        return _decode_any(raw)
    except _ERRORS:
        return _UNREADABLE


def _follow(value: Any, steps: Sequence[str | int]) -> Any:  # noqa: ANN401 - any JSON value
    """Return the value at the end of a path; None where the path leads to nothing."""
    for step in steps:
        if type(value) is dict:
            value = value.get(step)
        elif type(value) is list and type(step) is int and step < len(value):
            value = value[step]
        else:
            return _UNREADABLE if value is _UNREADABLE else None
    return value


def _follow_raw(raw: Raw, steps: Sequence[str | int]) -> str | None:
    """Return the JSON text at the end of a path; None for nothing and for ``null``."""
    text = bytes(raw).strip()
    for step in steps:
        found: Raw | None = None
        try:
            if isinstance(step, str) and text.startswith(b"{"):
                found = _decode_members(text).get(step)
            elif isinstance(step, int) and text.startswith(b"["):
                found = next(iter(_decode_elements(text)[step : step + 1]), None)
        except _ERRORS:  # nested too deeply
            return None
        if found is None:
            return None
        text = bytes(found).strip()
    return None if text in {b"", b"null"} else text.decode()


def _boolean(value: object) -> object:
    return value if type(value) is bool else MISFIT


def _integer(bits: int) -> Callable[[Any], object]:
    bound = 1 << (bits - 1)

    def convert(value: object) -> object:
        if type(value) is float and value.is_integer() and abs(value) <= _EXACT_INTEGERS:
            value = int(value)
        return value if type(value) is int and -bound <= value < bound else MISFIT

    return convert


def _float(largest: float) -> Callable[[Any], object]:
    def convert(value: object) -> object:
        if type(value) is not int and type(value) is not float:
            return MISFIT
        try:
            number = float(value)
        except OverflowError:
            return MISFIT
        return number if isfinite(number) and abs(number) <= largest else MISFIT

    return convert


def _string(value: object) -> object:
    return value if type(value) is str else MISFIT


def _date(value: object) -> object:
    """Return a date of the form 2026-11-27 (RFC 3339, full-date)."""
    if type(value) is not str or not _DATE.fullmatch(value):
        return MISFIT
    try:
        return date.fromisoformat(value)
    except ValueError:
        return MISFIT


def _timestamp(value: object, unit: Decimal) -> object:
    """Return microseconds since 1970 for RFC 3339, or for a number that counts ``unit``."""
    if type(value) is str:
        return _microseconds(value)
    if type(value) is int:
        counted = int(value * unit) if unit >= 1 else value // 1000
    elif type(value) is float and isfinite(value):
        # By its decimal digits: 1764235800.1 has no float of its own.
        counted = round(Decimal(repr(value)) * unit)
    else:
        return MISFIT
    return counted if EARLIEST <= counted <= LATEST else MISFIT


def _microseconds(text: str) -> object:
    """Return microseconds since 1970 for a time with an offset; further digits are cut off.

    Source: RFC 3339, section 5.6. A leap second does not fit: no reader has one.
    """
    match = _RFC_3339.fullmatch(text)
    if match is None:
        return MISFIT
    *fields, fraction, sign, hours, minutes = match.groups()
    microsecond = int((fraction or "")[:6].ljust(6, "0"))
    zone = UTC
    try:
        if sign:
            offset = timedelta(hours=int(hours), minutes=int(minutes))
            if int(minutes) > 59:  # noqa: PLR2004 - minutes of an hour
                return MISFIT
            zone = timezone(-offset if sign == "-" else offset)
        year, month, day, hour, minute, second = map(int, fields)
        moment = datetime(year, month, day, hour, minute, second, microsecond, zone)
        counted = (moment - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError):
        return MISFIT
    return counted if EARLIEST <= counted <= LATEST else MISFIT


def _decimal(text: str, digits: int, scale: int) -> object:
    """Return a JSON number, or a string with one, if it has no more digits than its column."""
    if text.startswith('"'):
        text = text[1:-1]
    if not _DECIMAL.fullmatch(text):
        return MISFIT
    try:
        number = Decimal(text)
        if number and number.adjusted() >= digits - scale:
            return MISFIT
        return number.quantize(Decimal(1).scaleb(-scale), context=_EXACT)
    except DecimalException:
        return MISFIT


def _json(text: str) -> object:
    return text


_CONVERTERS: Final[dict[str, Callable[[Any], object]]] = {
    "boolean": _boolean,
    "int32": _integer(32),
    "int64": _integer(64),
    "float": _float(_LARGEST_FLOAT),
    "double": _float(float("inf")),
    "string": _string,
    "json": _json,
    "date": _date,
}
