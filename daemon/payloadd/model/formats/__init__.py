"""Formats of objects: ``FORMATS`` finds a format by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from payloadd.model.formats.ndjson import GZIP, PLAIN, ZSTD
from payloadd.model.formats.parquet import Parquet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from payloadd.config.settings import Settings
    from payloadd.model.formats.api import ObjectFormat

PARQUET: Final = Parquet()
"""Its options are those of the settings within ``open_formats``."""
FORMATS: Final[Mapping[str, ObjectFormat]] = {one.name: one for one in (PLAIN, GZIP, ZSTD, PARQUET)}
"""Every format by its name; those of NDJSON are named as the values of COMPRESSION."""


def format_of(settings: Settings) -> str:
    """Return the name of the format of new objects."""
    return PARQUET.name if settings.object_format == "parquet" else settings.compression
