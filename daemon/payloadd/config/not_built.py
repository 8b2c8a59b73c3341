"""Documented settings that this version does not have yet.

The daemon does not start with them: it would ignore them silently, such as a token file that is not
enforced.
"""

from __future__ import annotations

from typing import Final

NOT_BUILT: Final = {
    "DRAIN_DELAY": "a delay between SIGTERM and the drain",
    "ENVELOPE": "envelopes around payloads",
    "JOURNAL_URL": "a journal that machines share",
    "OBJECT_FORMAT": "object formats besides NDJSON",
    "PARQUET_SCHEMA": "object formats besides NDJSON",
    "PARQUET_SORT_BY": "object formats besides NDJSON",
    "STREAMS": "streams",
    "WATERMARK": "watermarks",
}
"""What each of them would give."""
