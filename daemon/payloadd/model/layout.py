"""Which object a job goes into, and under which key.

Settings may change between the moment a job is sent to the store and the moment its row
leaves the journal, with a crash in between. The replay has to hit the same object all the
same, so the journal remembers which layout held from which job on.
"""

from __future__ import annotations

import socket
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from payloadd.model.formats.ndjson import SUFFIXES
from payloadd.model.job import Batch
from payloadd.model.keys import KeyTemplate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.config.parsers import Compression
    from payloadd.config.settings import Settings
    from payloadd.model.job import Job

_NEVER: Final = 2**63
"""A ``seq`` that no job reaches."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How jobs become objects, in a form that can be kept."""

    template: str
    host: str
    compression: Compression
    alone: bool
    """One object per payload: no batches, no seals."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return what the settings ask for."""
        template = settings.key_template
        # Remembered only where it is part of the key: it may change with every start.
        host = socket.gethostname() if "{host}" in template else ""
        return cls(template, host, settings.compression, alone=settings.batch_max_payloads == 1)


class Layouts:
    """The layouts in the order of the first ``seq`` that each holds for."""

    def __init__(self, layouts: Sequence[tuple[int, Layout]]) -> None:
        self._firsts = [first for first, _ in layouts]
        self._layouts = [layout for _, layout in layouts]
        self._templates = [
            KeyTemplate.parse(layout.template, host=layout.host) for layout in self._layouts
        ]

    def at(self, seq: int) -> Layout:
        """Return the layout of a job."""
        return self._layouts[self._index(seq)]

    def end(self, seq: int) -> int:
        """Return the first ``seq`` behind this one that has another layout."""
        index = self._index(seq) + 1
        return self._firsts[index] if index < len(self._firsts) else _NEVER

    def batch(self, jobs: Sequence[Job]) -> Batch:
        """Return the object that ``jobs``, which have one layout, make together."""
        index = self._index(jobs[0].seq)
        layout = self._layouts[index]
        key = self._templates[index].render(jobs[0].id) + SUFFIXES[layout.compression]
        return Batch(jobs, key, layout.compression, sealed=not layout.alone)

    def _index(self, seq: int) -> int:
        return bisect_right(self._firsts, seq) - 1
