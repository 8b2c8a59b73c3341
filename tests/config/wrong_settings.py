"""The problems of settings that are wrong."""

from __future__ import annotations

import pytest

from payloadd.config import settings as config
from payloadd.errors import SettingsError


def problems(**environ: str) -> list[str]:
    """Return the problems of settings that are wrong."""
    with pytest.raises(SettingsError) as caught:
        config.load(environ)
    return caught.value.problems
