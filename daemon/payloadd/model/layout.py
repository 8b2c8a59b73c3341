"""Layouts: how jobs become objects, and under which keys.

Each stream has layouts of its own, whose templates contain the name of the stream.

The daemon may crash after it has sent an object and before the rows of its jobs have left the
journal, and the next start may have other settings. The replay has to send the same object to the
same key. Therefore the journal keeps each layout with the first ``seq`` that it holds for.
"""

from __future__ import annotations

import socket
from bisect import bisect_right
from dataclasses import dataclass
from string import Formatter
from typing import TYPE_CHECKING, Final, Self

from payloadd.model.formats import FORMATS, PARQUET, format_of
from payloadd.model.job import Batch
from payloadd.model.keys import KeyTemplate
from payloadd.model.streams import DEFAULT_NAME, first_seq, stream_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.config.settings import Settings
    from payloadd.model.job import Job

_NEVER: Final = 2**63
"""A ``seq`` larger than that of any job."""
_EVERY_ID: Final = (0, 2**128)
"""A range with the numbers of all ids."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The settings that decide how jobs become objects; the journal keeps each as a row."""

    template: str
    """The template of the keys, without the field ``{stream}``."""
    host: str
    """The host name; empty unless the template contains it."""
    format_name: str
    """The name of the format in :data:`~payloadd.model.formats.FORMATS`."""
    alone: bool
    """Whether every payload is an object of its own: batches have one job and no seal."""

    @classmethod
    def of(cls, settings: Settings, stream: str = DEFAULT_NAME) -> Self:
        """Return the layout of new jobs of the stream with this name."""
        template = _with_stream(settings.key_template, stream)
        format_name = format_of(settings)
        if format_name == PARQUET.name:
            template = template.removesuffix(PARQUET.suffix)
        # Kept only where it is part of the key: it may change with every start.
        host = socket.gethostname() if "{host}" in template else ""
        return cls(template, host, format_name, alone=settings.batch_max_payloads == 1)


class Layouts:
    """All layouts of a journal, in the order of the first ``seq`` that each holds for."""

    def __init__(self, layouts: Sequence[tuple[int, Layout]]) -> None:
        self._known: dict[int, Layout] = {}
        self.add(layouts)

    def add(self, layouts: Sequence[tuple[int, Layout]]) -> None:
        """Add layouts, each with the first ``seq`` that it holds for."""
        self._known.update(sorted(layouts, key=lambda pair: pair[0]))
        # Jobs whose layout is lost get the newest one of their stream.
        newest = {first_seq(stream_of(first)): layout for first, layout in self._known.items()}
        of_jobs = {**newest, **self._known}
        self._firsts = sorted(of_jobs)
        self._layouts = [of_jobs[first] for first in self._firsts]
        templates = {
            layout: KeyTemplate.parse(layout.template, host=layout.host)
            for layout in set(self._layouts)
        }
        self._templates = [templates[layout] for layout in self._layouts]

    def layout_of(self, seq: int) -> Layout:
        """Return the layout of the job with this ``seq``."""
        return self._layouts[self._index(seq)]

    def next_change(self, seq: int) -> int:
        """Return the first ``seq`` after this one with another layout; 2^63 if there is none.

        It may be that of the next stream.
        """
        index = self._index(seq) + 1
        return self._firsts[index] if index < len(self._firsts) else _NEVER

    def ids_beside(self, job: Job) -> tuple[int, int]:
        """Return the range of ids, as numbers, whose jobs may be in one object with ``job``.

        The second number is not in it. A key has the time of its first job, so no job of another
        day, hour or minute may be in the object, as far as the key names them. Ids are not always
        in the order of ``seq``: the clock may go back.
        """
        period = self._templates[self._index(job.seq)].period
        if not period:
            return _EVERY_ID
        milliseconds = job.id.int >> 80
        start = milliseconds - milliseconds % period
        return start << 80, (start + period) << 80

    def batch(self, jobs: Sequence[Job]) -> Batch:
        """Return the batch of ``jobs``, which have one layout."""
        index = self._index(jobs[0].seq)
        layout = self._layouts[index]
        key = self._templates[index].render(jobs[0].id) + FORMATS[layout.format_name].suffix
        return Batch(jobs, key, layout.format_name, sealed=not layout.alone)

    def _index(self, seq: int) -> int:
        return bisect_right(self._firsts, seq) - 1


def _with_stream(template: str, name: str) -> str:
    """Return a template with the name of a stream in place of the field ``{stream}``."""
    if "{stream}" not in template:
        return template
    text = ""
    for literal, field_name, _, _ in Formatter().parse(template):
        text += literal.replace("{", "{{").replace("}", "}}")
        if field_name is not None:
            text += name if field_name == "stream" else f"{{{field_name}}}"
    return text
