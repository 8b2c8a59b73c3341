"""Settings that are documented and not built yet: setting one makes the daemon exit with 78."""

from __future__ import annotations

from typing import Final

NAMES: Final = (
    *("DRAIN_DELAY", "ENVELOPE"),
    *("JOURNAL_URL", "OBJECT_FORMAT", "PARQUET_SCHEMA", "PARQUET_SORT_BY", "PUT_PRICE"),
    *("S3_ACL", "S3_CHECKSUM", "S3_EXPECTED_BUCKET_OWNER", "S3_IF_NONE_MATCH"),
    *("S3_METADATA", "S3_REQUEST_PAYER", "S3_SSE", "S3_SSE_KMS_KEY_ID", "S3_STORAGE_CLASS"),
    *("S3_TAGS", "STREAMS", "WATERMARK"),
)

VALUES: Final = (
    ("DURABILITY", "store"),
    ("LOG_FORMAT", "journald"),
    ("CLIENT_ADDRESS", "proxy"),
    ("KEY_TEMPLATE", "{stream}/{id}.ndjson"),
)
"""Documented values that are not built yet, of settings that are built."""
