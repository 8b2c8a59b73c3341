"""What waits in the journal, in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from daemon.pipeline.schema import KEY_BYTES, ROW_BYTES

if TYPE_CHECKING:
    from daemon.pipeline.changes import Changes


@dataclass(frozen=True, slots=True)
class Totals:
    """The next ``seq``, what waits in the journal: jobs, payloads, bytes; and what else is kept."""

    next: int
    jobs: int
    payloads: int
    bytes: int
    keys: int = 0
    """Idempotency-Keys that are known."""
    accepted: int = 0
    """Payloads that were ever accepted."""
    dead_bytes: int = 0
    """What dead letters take; not counted in the others."""
    dead_payloads: int = 0
    """How many payloads dead letters hold; not counted in the others."""
    evicted: int = 0
    """Idempotency-Keys that were forgotten before their time, in this run."""

    @property
    def all_bytes(self) -> int:
        """What waits, what is dead and what keys take: the size that is bounded."""
        return self.bytes + self.dead_bytes + self.keys * KEY_BYTES

    def after(self, changes: Changes) -> Totals:
        """Return what they are when ``changes`` are committed."""
        return Totals(
            changes.next,
            self.jobs + changes.jobs,
            self.payloads + changes.payloads,
            self.bytes + changes.bytes + changes.jobs * ROW_BYTES,
            self.keys + changes.keys,
            self.accepted + changes.accepted,
            self.dead_bytes + changes.dead_bytes,
            self.dead_payloads + changes.dead_payloads,
            self.evicted + changes.evicted,
        )
