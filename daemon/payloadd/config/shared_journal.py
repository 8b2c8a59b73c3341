"""The setting JOURNAL_URL. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    durability = values.get("durability", "disk")
    if values.get("journal_url") is None or durability == "disk":
        return []
    problem = (
        f"JOURNAL_URL, DURABILITY: {durability} is not allowed together with JOURNAL_URL;"
        " allowed is DURABILITY=disk, or no JOURNAL_URL"
    )
    return [problem]
