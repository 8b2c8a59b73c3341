"""A setting is a field of a dataclass; its metadata says how it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def setting(default: str | None, parse: Callable[[str], object], doc: str) -> dict[str, Any]:
    """Return the metadata of a field: default as a user writes it, parser, documentation."""
    return {"default": default, "parse": parse, "doc": doc}
