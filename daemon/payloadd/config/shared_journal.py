"""The setting JOURNAL_URL. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from payloadd.config.parsers import size_text

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_LENGTH: Final = 64 * 2**20
"""Bytes of the largest request that a shared journal takes."""
_ALLOWED: Final = "postgresql://[user[:password]@]host[:port]/database[?sslmode=...]"


def journal_url(text: str) -> str:
    """Parse a connection URI of PostgreSQL (documentation of libpq, 34.1.1.2). Raises ValueError.

    Only its form is checked: libpq knows the parameters.
    """
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ValueError(_ALLOWED) from None
    if parts.scheme not in {"postgresql", "postgres"} or not parts.path.strip("/"):
        raise ValueError(_ALLOWED)
    if re.search(r"\s|\0", text) or "://" not in text:
        raise ValueError(_ALLOWED)
    return text


def shared_journal_problems(values: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting that JOURNAL_URL does not go with."""
    if values.get("journal_url") is None:
        return []
    problems = []
    if (durability := values.get("durability", "disk")) != "disk":
        problems.append(
            f"JOURNAL_URL, DURABILITY: {durability} is not allowed together with JOURNAL_URL;"
            " allowed is DURABILITY=disk, or no JOURNAL_URL"
        )
    if (length := values.get("max_length", 0)) > MOST_LENGTH:
        problems.append(
            f"MAX_LENGTH: {size_text(length)} is not allowed with JOURNAL_URL; allowed is"
            f" {size_text(MOST_LENGTH)} or less: a commit has to end within the lease of a lane"
        )
    return problems
