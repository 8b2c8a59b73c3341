"""Exit statuses of the command ``payloadd``."""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """Exit statuses of ``payloadd serve``; click ends with 2 after a wrong command line."""

    DRAINED = 0
    INTERNAL_FAILURE = 1
    LOST = 75
    WRONG_SETTINGS = 78
