"""What waits in the journal, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.pipeline.schema import ROW_BYTES

if TYPE_CHECKING:
    from daemon.pipeline.changes import Changes


@dataclass(frozen=True, slots=True)
class Totals:
    """The next ``seq``, and what waits in the journal: jobs, payloads, bytes."""

    next: int
    jobs: int
    payloads: int
    bytes: int
    dead_bytes: int = 0
    """What dead letters take; not counted in the others."""

    @property
    def all_bytes(self) -> int:
        """What waits and what is dead: the size that is bounded."""
        return self.bytes + self.dead_bytes

    def after(self, changes: Changes) -> Totals:
        """Return what they are when ``changes`` are committed."""
        return Totals(
            changes.next,
            self.jobs + changes.jobs,
            self.payloads + changes.payloads,
            self.bytes + changes.bytes + changes.jobs * ROW_BYTES,
            self.dead_bytes + changes.dead_bytes,
        )
