"""Settings that are documented and not built yet: setting one makes the daemon exit with 78."""

from __future__ import annotations

from typing import Final

NAMES: Final = ("WATERMARK",)
