"""Describe the process in one immutable snapshot, and render the snapshot as text.

``/readyz``, systemd's status line, the ``drained`` line of the log and the gauges of ``/metrics``
show the same figures, so they are rendered from the same :class:`Status`; ``payloadd journal
status`` is rendered from a :class:`JournalStatus`. All functions here are pure.
``Health.snapshot`` makes a Status.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Phase = Literal["starting", "serving", "leaving", "draining", "drained"]
"""The phases of the process in their order.

``leaving``: requests are still accepted, but ``/readyz`` says 503, so that balancers send no more
(DRAIN_DELAY). ``drained``: all is closed, the process ends.
"""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A condition that an operator has to fix."""

    code: str
    """The stable name of the error, such as ``AccessDenied`` or ``ENOSPC``."""
    reason: str
    """The error as a sentence; may contain text that a server sent."""
    since: float
    """Unix time in seconds."""


@dataclass(frozen=True, slots=True)
class PayloadFigures:
    """The number of payloads by outcome, since the start of the process."""

    accepted: int = 0
    """Acknowledged with a 2xx."""
    stored: int = 0
    """Confirmed by the store."""
    dead: int = 0
    """Refused by the store for good, or damaged in the journal."""
    open: int = 0
    """Neither stored nor dead, those that the start found in the journal included."""
    journaled: int = 0
    """In the journal when it was closed; 0 before."""
    unkept: int = 0
    """Refused by the store for good, and kept by no journal."""
    oldest_seconds: float = 0.0
    """The age of the oldest open payload."""
    drained_per_second: float = 0.0
    """Stored or dead, over the last ten seconds."""
    unpromised: int = 0
    """Of the open payloads those that were not acknowledged: they may be dropped."""

    @property
    def lost_when_closed(self) -> int:
        """The payloads that no store and no journal has. Valid once the journal is closed."""
        return max(0, self.open - self.journaled - self.unpromised) + self.unkept


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """The content of the memory channel."""

    jobs: int = 0
    bytes: int = 0
    """Bytes of the payloads."""
    received: int = 0
    """Jobs that the dispatcher has received since the start."""
    paused: bool = False
    """Whether the dispatcher is blocked on memory, disk or store, so that it receives nothing."""
    put_back: int = 0
    """Jobs in memory that wait for another attempt at their object."""
    forming: int = 0
    """Jobs that were received and that are in no worker's batch yet."""
    forming_bytes: int = 0
    """Bytes of the payloads of these."""


@dataclass(frozen=True, slots=True)
class UploadFigures:
    """The limits of uploads, which follow the store."""

    concurrency: int = 0
    """Uploads that may be in progress at the same time."""
    rate_limit: float = math.inf
    """Uploads a second that the most throttled key prefix accepts; infinite without a limit."""


@dataclass(frozen=True, slots=True)
class JournalFigures:
    """The content of the journal; zeros where nothing is kept on a disk, but for the keys."""

    jobs: int = 0
    payloads: int = 0
    bytes: int = 0
    """Bytes of jobs, dead letters and Idempotency-Keys: the sum that JOURNAL_MAX_BYTES bounds."""
    idempotency_keys: int = 0
    """Idempotency-Keys that are known."""
    missing_payloads: int = 0
    """Accepted payloads that a damaged journal has lost."""


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """The part of a ``JournalStatus`` that one stream has."""

    jobs: int
    payloads: int
    bytes: int
    oldest_seconds: float
    dead_letters: int


@dataclass(frozen=True, slots=True)
class JournalStatus:
    """A snapshot of one journal that another process may have open; counts, bytes and ages."""

    process: int | None
    """Id of the daemon that has the journal open, None if none has."""
    jobs: int
    payloads: int
    bytes: int
    """Bytes of the jobs."""
    oldest_seconds: float
    """Age of the oldest waiting job in seconds, 0 if no job waits."""
    sealed_batches: int
    dead_letters: int
    dead_payloads: int
    dead_bytes: int
    damaged: int
    """Dead letters with the code DAMAGED."""
    idempotency_keys: int
    file_bytes: int
    """Bytes of the files of the journal."""
    streams: Mapping[str, StreamStatus] = field(default_factory=dict)
    """The default stream and all others that have jobs, by name."""


@dataclass(frozen=True, slots=True)
class DeadLetterGroup:
    """The dead letters of one stream that have the same error code."""

    stream: str
    code: str
    letters: int
    payloads: int


@dataclass(frozen=True, slots=True)
class Status:
    """The state of the process at one moment."""

    phase: Phase = "starting"
    payloads: PayloadFigures = PayloadFigures()
    queue: QueueFigures = QueueFigures()
    journal: JournalFigures = JournalFigures()
    busy_workers: int = 0
    """Workers that have a batch."""
    troubles: Mapping[str, Trouble] = field(default_factory=dict)
    """The present troubles by part (``store``, ``journal``)."""
    uploads: UploadFigures = UploadFigures()
    credentials_expire_seconds: float | None = None
    """Seconds until the keys of the store expire, negative afterwards; None: they do not."""
    put_cost_dollars_per_day: float = 0.0
    """What a day of uploads costs at the present rate."""

    @property
    def lost(self) -> int:
        """The payloads that were acknowledged and that no store and no journal has.

        Open payloads are not lost before the journal is closed.
        """
        return self.payloads.lost_when_closed if self.phase == "drained" else self.payloads.unkept


def status_line(status: Status) -> str:
    """Return the line that ``systemctl status`` shows: phase, figures, troubles."""
    if status.phase == "drained":
        counts = ", ".join(f"{count} {name}" for name, count in drained_fields(status).items())
        return f"drained: {counts}"
    line = (
        f"{status.phase}: {status.payloads.stored} payloads stored,"
        f" {status.queue.jobs} jobs queued,"
        f" {status.journal.jobs} jobs journaled"
    )
    for part, trouble in status.troubles.items():
        line += f"; waiting for the {part}: {trouble.reason}"
    return line


def wrong_settings_line(problems: Sequence[str]) -> str:
    """Return the line that ``systemctl status`` shows after a start with wrong settings."""
    return "wrong settings: " + "; ".join(problems)


def drained_fields(status: Status) -> dict[str, int]:
    """Return the fields of the log event ``drained``: payloads stored, journaled and lost."""
    payloads = status.payloads
    return {"stored": payloads.stored, "journaled": payloads.journaled, "lost": status.lost}


def draining_fields(status: Status) -> dict[str, Any]:
    """Return the fields of the log event ``still_draining``: open payloads, and the troubles."""
    return {
        "open": status.payloads.open,
        "uploading": status.busy_workers,
        "waits_for": {part: trouble.reason for part, trouble in status.troubles.items()},
    }


def trouble_documents(status: Status) -> list[dict[str, Any]]:
    """Return the member ``troubles`` of the answer of ``/readyz``.

    Times are in ISO 8601, UTC, with milliseconds.
    """
    return [
        {
            "part": part,
            "code": trouble.code,
            "reason": trouble.reason,
            "since": datetime.fromtimestamp(trouble.since, UTC).isoformat(timespec="milliseconds"),
        }
        for part, trouble in status.troubles.items()
    ]


def journal_document(status: JournalStatus) -> dict[str, Any]:
    """Return the JSON object of ``payloadd journal status --json``."""
    return asdict(status)


def journal_lines(status: JournalStatus) -> list[str]:
    """Return the lines of ``payloadd journal status``: names and values in two columns."""
    found = journal_document(status)
    process, streams = found.pop("process"), found.pop("streams")
    found = {"daemon": "not running" if process is None else f"process {process}", **found}
    lines = [f"{name.replace('_', ' '):<18}{value}" for name, value in found.items()]
    if len(streams) > 1:
        for name, figures in streams.items():
            shown = ", ".join(f"{key.replace('_', ' ')} {one}" for key, one in figures.items())
            lines.append(f"stream {name}: {shown}")
    return lines
