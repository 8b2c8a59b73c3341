"""Names of streams, as settings, paths of requests and the file of AUTH_TOKENS have them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_STREAM: Final = "default"
"""The name of the stream of requests that name none."""
MOST_STREAMS: Final = 1000
NAME_RULE: Final = "1 to 63 of a-z, 0-9, _ and -, a letter or digit first"
_SHOWN: Final = 10
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


def is_stream_name(text: str) -> bool:
    """Return whether a stream may have this name."""
    return _NAME.fullmatch(text) is not None


def streams(text: str) -> tuple[str, ...]:
    """Parse a comma list of names of streams besides the default one. Raises ValueError."""
    names = tuple(name.strip() for name in text.split(","))
    for number, name in enumerate(names):
        if not is_stream_name(name):
            raise ValueError(f"names with commas between them ({NAME_RULE}), not {name[:80]!r}")
        if name == DEFAULT_STREAM:
            raise ValueError(
                f"names without {DEFAULT_STREAM!r}, which is always the stream of /v1/payloads"
            )
        if name in names[:number]:
            raise ValueError(f"each name once, and {name!r} is there twice")
    if len(names) > MOST_STREAMS:
        raise ValueError(f"at most {MOST_STREAMS} names, not {len(names)}")
    return names


def some_of(names: Sequence[str]) -> list[str]:
    """Return the first names for a line of text, and how many more there are."""
    more = len(names) - _SHOWN
    return [*names[:_SHOWN], *([f"{more} more"] if more > 0 else [])]
