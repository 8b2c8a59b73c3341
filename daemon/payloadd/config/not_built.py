"""Documented settings that this version does not have yet.

The daemon does not start with them: it would ignore them silently, such as a token file that is not
enforced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from payloadd.config.object_options import SSE_C

if TYPE_CHECKING:
    from collections.abc import Callable

NOT_BUILT: Final = {
    "WATERMARK": "watermarks",
}
"""What each of them would give."""


def not_built_problems(is_set: Callable[[str], bool]) -> list[str]:
    """Return a line for each setting that is refused; ``is_set``: whether a name has a value."""
    refused = {
        name: f"is set, but {feature}: not built yet in this version; unset it"
        for name, feature in NOT_BUILT.items()
    }
    refused |= {name: f"is not allowed; allowed is: {why}" for name, why in SSE_C.items()}
    return [f"{name}: {why}" for name, why in refused.items() if is_set(name)]
