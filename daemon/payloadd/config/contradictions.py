"""Settings that are allowed alone and not together.

A message names the setting that an operator has set: the other one may be at its default.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from payloadd.config.object_options import encryption_problems
from payloadd.config.parquet_schema import parquet_problems
from payloadd.config.parsers import size_text
from payloadd.config.shared_journal import shared_journal_problems

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_COMPLETE: Final = (
    ("tls_cert", "tls_key"),
    ("trusted_proxies", "client_address"),
    ("aws_access_key_id", "aws_secret_access_key"),
)
"""Settings that need each other."""
_NEEDS_TLS: Final = "tls_client_ca"


def contradictions_of(values: Mapping[str, Any], given: Collection[str] = ()) -> list[str]:
    """Return a line for each contradiction in parsed settings, which may be incomplete.

    ``given`` are the names of the fields that an operator has set.
    """
    problems = [
        _too_long(values["max_length"], name, values[name], given)
        for name in ("max_queue_bytes", "max_request_bytes", "journal_max_bytes")
        if values.get("max_length", 0) > values.get(name, values.get("max_length", 0))
    ]
    for names in _COMPLETE:
        needing = (*names, _NEEDS_TLS) if "tls_cert" in names else names
        # A wrong value has a message of its own.
        missing = [name for name in names if not values.get(name) and name in values]
        present = [name for name in needing if values.get(name)]
        if missing and present:
            problems.append(_incomplete(missing, present))
    return [
        *problems,
        *_watermark_without_disk(values),
        *_too_long_linger(values),
        *parquet_problems(values),
        *shared_journal_problems(values),
        *encryption_problems(values),
    ]


def _watermark_without_disk(values: Mapping[str, Any]) -> list[str]:
    """Return the problem of watermarks whose promises nothing would keep."""
    if values.get("watermark") != "on" or values.get("durability") == "disk":
        return []
    problem = (
        f"WATERMARK: 'on' is not allowed with DURABILITY={values.get('durability')}; allowed is"
        " DURABILITY=disk: only a journal knows after a crash what watermarks have promised"
    )
    return [problem]


def _too_long(length: int, name: str, limit: int, given: Collection[str]) -> str:
    """Return the problem of a MAX_LENGTH that is larger than another setting."""
    name, long, short = name.upper(), size_text(length), size_text(limit)
    if name.lower() not in given:
        return (
            f"MAX_LENGTH: {long} is not allowed with {name}={short}, its default;"
            f" allowed is at most {short}, or a larger {name}"
        )
    if "max_length" not in given:
        return (
            f"{name}: {short} is not allowed; allowed is MAX_LENGTH ({long}, its default) or more"
        )
    return (
        f"MAX_LENGTH, {name}: {long} and {short} are not allowed together;"
        f" allowed is a MAX_LENGTH of {name} at most"
    )


def _too_long_linger(values: Mapping[str, Any]) -> list[str]:
    """Return the problem of requests that would time out before their batch is full."""
    linger, timeout = values.get("batch_linger", 0), values.get("request_timeout", math.inf)
    if values.get("durability") != "store" or linger < timeout:
        return []
    problem = (
        f"BATCH_LINGER, REQUEST_TIMEOUT: {linger:g}s and {timeout:g}s are not allowed together with"
        " DURABILITY=store, where requests wait for their batch; allowed is a BATCH_LINGER below"
        " REQUEST_TIMEOUT"
    )
    return [problem]


def _incomplete(missing: list[str], present: list[str]) -> str:
    """Return the problem of settings that are not set, where others need them."""
    absent, there = (", ".join(names).upper() for names in (missing, present))
    are, is_ = ("is" if len(names) == 1 else "are" for names in (missing, present))
    return f"{absent}: {are} not set, but {there} {is_}; allowed is all of them or none"
