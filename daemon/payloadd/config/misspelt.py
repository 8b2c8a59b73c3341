"""Find variables that look like misspelt settings."""

from __future__ import annotations

import os
from dataclasses import fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from payloadd.config.settings import Settings, names_of

if TYPE_CHECKING:
    from collections.abc import Mapping

_CLOSE: Final = 0.88
"""Similarity (difflib) of two names from which one is probably the other, misspelt."""


def misspelt_names(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that look like a misspelt setting, and the setting for each.

    Only names that are close to a setting of payloadd's own are returned: the environment is full
    of variables of other programs, AWS's among them.
    """
    environ = os.environ if environ is None else environ
    known = {name for item in fields(Settings) for name in names_of(item.name)}
    own = [name for name in known if not name.startswith("AWS_") and name != "STATE_DIRECTORY"]
    close = {
        name: get_close_matches(name.upper(), own, 1, _CLOSE) for name in environ.keys() - known
    }
    return {name: close[name][0] for name in sorted(close) if close[name]}
