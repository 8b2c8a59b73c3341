"""Settings that are documented and not built yet: setting one makes the daemon exit with 78."""

from __future__ import annotations

from typing import Final

NAMES: Final = (
    *("DRAIN_DELAY", "ENVELOPE"),
    *("JOURNAL_URL", "OBJECT_FORMAT", "PARQUET_SCHEMA", "PARQUET_SORT_BY"),
    *("STREAMS", "WATERMARK"),
)

VALUES: Final = (
    ("DURABILITY", "store"),
    ("LOG_FORMAT", "journald"),
    ("CLIENT_ADDRESS", "proxy"),
    ("KEY_TEMPLATE", "{stream}/{id}.ndjson"),
)
"""Documented values that are not built yet, of settings that are built."""
