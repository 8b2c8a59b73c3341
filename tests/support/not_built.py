"""Settings that are documented and not built yet: setting one makes the daemon exit with 78."""

from __future__ import annotations

from typing import Final

NAMES: Final = (
    *("OBJECT_FORMAT", "PARQUET_SCHEMA", "PARQUET_SORT_BY"),
    "WATERMARK",
)

VALUES: Final = (("DURABILITY", "store"),)
"""Documented values that are not built yet, of settings that are built."""
