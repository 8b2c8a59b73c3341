"""Layouts: how jobs become objects, and under which keys.

The daemon may crash after it has sent an object and before the rows of its jobs have left the
journal, and the next start may have other settings. The replay has to send the same object to the
same key. Therefore the journal keeps each layout with the first ``seq`` that it holds for.
"""

from __future__ import annotations

import socket
from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from payloadd.model.formats import FORMATS
from payloadd.model.job import Batch
from payloadd.model.keys import KeyTemplate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.config.settings import Settings
    from payloadd.model.job import Job

_NEVER: Final = 2**63
"""A ``seq`` larger than that of any job."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The settings that decide how jobs become objects; the journal keeps each as a row."""

    template: str
    host: str
    """The host name; empty unless the template contains it."""
    format_name: str
    """The name of the format in :data:`~payloadd.model.formats.FORMATS`."""
    alone: bool
    """Whether every payload is an object of its own: batches have one job and no seal."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the layout of new jobs."""
        template = settings.key_template
        # Kept only where it is part of the key: it may change with every start.
        host = socket.gethostname() if "{host}" in template else ""
        return cls(template, host, settings.compression, alone=settings.batch_max_payloads == 1)


class Layouts:
    """All layouts of a journal, in the order of the first ``seq`` that each holds for."""

    def __init__(self, layouts: Sequence[tuple[int, Layout]]) -> None:
        self._firsts = [first for first, _ in layouts]
        self._layouts = [layout for _, layout in layouts]
        self._templates = [
            KeyTemplate.parse(layout.template, host=layout.host) for layout in self._layouts
        ]

    def layout_of(self, seq: int) -> Layout:
        """Return the layout of the job with this ``seq``."""
        return self._layouts[self._index(seq)]

    def next_change(self, seq: int) -> int:
        """Return the first ``seq`` after this one with another layout; 2^63 if there is none."""
        index = self._index(seq) + 1
        return self._firsts[index] if index < len(self._firsts) else _NEVER

    def batch(self, jobs: Sequence[Job]) -> Batch:
        """Return the batch of ``jobs``, which have one layout."""
        index = self._index(jobs[0].seq)
        layout = self._layouts[index]
        key = self._templates[index].render(jobs[0].id) + FORMATS[layout.format_name].suffix
        return Batch(jobs, key, layout.format_name, sealed=not layout.alone)

    def _index(self, seq: int) -> int:
        return bisect_right(self._firsts, seq) - 1
