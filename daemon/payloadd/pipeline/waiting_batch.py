"""A batch on its way to a worker."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from payloadd.model.job import Batch


@dataclass(slots=True, eq=False)
class WaitingBatch:
    """A batch that waits for a worker, and what happened to it so far."""

    batch: Batch
    rounds: int = 0
    """Rounds of attempts that failed."""
    failed: float = math.inf
    """The time at which the first one failed."""
    needs_operator: bool = False
    """Whether an operator has to fix the cause of the last failure: it does not end by itself."""
    sealed: bool = False
    """Whether the journal has it as a sealed batch."""
    repeat: bool = False
    """Whether the store may have the object."""
