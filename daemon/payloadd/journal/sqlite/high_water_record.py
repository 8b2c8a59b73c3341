"""What one record of ``journal.high`` says; see ``high_water.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

CLEAN: Final = 1
AT_LEAST: Final = 2
FOREIGN: Final = 4


@dataclass(frozen=True, slots=True)
class Mark:
    """One record."""

    number: int
    boot: bytes
    journal: bytes
    """The identity of the journal."""
    next: int
    accepted: int
    """Payloads that were ever accepted."""
    held: int
    """Payloads that were in the journal: waiting or dead letters."""
    missing: int
    """Payloads that an earlier start has missed, not acknowledged by an operator so far."""
    flags: int

    @property
    def clean(self) -> bool:
        """Whether the daemon ended in order behind it."""
        return bool(self.flags & CLEAN)

    @property
    def foreign(self) -> bool:
        """Whether an earlier start has found the record of another journal."""
        return bool(self.flags & FOREIGN)
