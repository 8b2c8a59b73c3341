"""Formats of objects: ``FORMATS`` finds a format by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from payloadd.model.formats.ndjson import GZIP, PLAIN, ZSTD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from payloadd.model.formats.api import ObjectFormat

FORMATS: Final[Mapping[str, ObjectFormat]] = {one.name: one for one in (PLAIN, GZIP, ZSTD)}
"""Every format by its name, in the order in which error messages list the names."""
