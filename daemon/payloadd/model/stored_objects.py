"""The objects that the payloads of one request are in."""

from __future__ import annotations

from typing import Final, NamedTuple

MOST_KEYS: Final = 1000
"""Keys that are kept of one request, those of its first jobs."""


class StoredObjects(NamedTuple):
    """The objects in which the payloads of a request are."""

    keys: list[str]
    """The keys below the store's prefix, in the order of the payloads; 1,000 at most."""
    more: int
    """The number of objects whose keys are left out."""
