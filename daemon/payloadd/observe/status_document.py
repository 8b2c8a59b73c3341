"""Render the state of the process as the document of ``/status.json``."""

from __future__ import annotations

import math
import os
import socket
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from payloadd import __version__
from payloadd.config.changed import changed_settings, store_text
from payloadd.config.stream_names import DEFAULT_STREAM, some_of
from payloadd.observe.advice import advice
from payloadd.observe.status import trouble_documents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.config.settings import Settings
    from payloadd.errors import RefusedError
    from payloadd.observe.history import Sample
    from payloadd.observe.status import DeadLetterGroup, Status

_RATE_SECONDS: Final = 10.0
_HOUR: Final = 3600


@dataclass(frozen=True, slots=True)
class Facts:
    """What does not change while the process runs."""

    version: str
    host: str
    process: int
    started: float
    """Unix time in seconds."""
    store: str
    """``STORE_URL`` without secrets."""
    durability: str
    max_queue: int
    max_queue_bytes: int
    journal_max_bytes: int
    max_workers: int
    changed_settings: Sequence[tuple[str, str, str]] = field(default=())
    """Name, value and default of the settings that differ from their defaults; no secrets."""

    @classmethod
    def of(cls, settings: Settings, started: float) -> Self:
        """Return the facts of this process."""
        return cls(
            version=__version__,
            host=socket.gethostname(),
            process=os.getpid(),
            started=started,
            store=store_text(settings),
            durability=settings.durability,
            max_queue=settings.max_queue,
            max_queue_bytes=settings.max_queue_bytes,
            journal_max_bytes=settings.journal_max_bytes,
            max_workers=settings.max_workers,
            changed_settings=changed_settings(settings),
        )


def start_fields(settings: Settings) -> dict[str, object]:
    """Return the fields of the log event ``listening`` that say which daemon it is."""
    return {
        "version": __version__,
        "store": store_text(settings),
        "durability": settings.durability,
        "streams": some_of((DEFAULT_STREAM, *(settings.streams or ()))),
    }


def status_document(
    status: Status,
    facts: Facts,
    refusal: RefusedError | None,
    samples: Sequence[Sample],
    dead_letters: Sequence[DeadLetterGroup] | None = None,
) -> dict[str, Any]:
    """Return the document without the history; ``samples`` are the last ones, for the rates.

    Times are Unix times in seconds (those of troubles are ISO 8601, as in ``/readyz``), sizes
    bytes, durations seconds; null is "no limit" or "not known".
    """
    troubles = trouble_documents(status)
    for trouble in troubles:
        trouble["advice"] = advice(trouble["part"], trouble["code"])
    payloads, queue, journal = status.payloads, status.queue, status.journal
    limit = status.uploads.rate_limit
    return {
        "phase": status.phase,
        "ready": refusal is None,
        "refusal": None if refusal is None else {"code": refusal.code, "detail": refusal.detail},
        "version": facts.version,
        "host": facts.host,
        "process": facts.process,
        "started": facts.started,
        "store": facts.store,
        "durability": facts.durability,
        "troubles": troubles,
        "payloads": {
            "accepted": payloads.accepted,
            "stored": payloads.stored,
            "dead": payloads.dead,
            "open": payloads.open,
            "oldest_seconds": payloads.oldest_seconds,
            "drained_per_second": payloads.drained_per_second,
            "missing": journal.missing_payloads,
        },
        "queue": {
            "jobs": queue.jobs + queue.put_back,
            "bytes": queue.bytes,
            "max_jobs": facts.max_queue,
            "max_bytes": facts.max_queue_bytes,
        },
        "journal": {
            "jobs": journal.jobs,
            "payloads": journal.payloads,
            "bytes": journal.bytes,
            "max_bytes": facts.journal_max_bytes,
            "idempotency_keys": journal.idempotency_keys,
        },
        "uploads": {
            "busy_workers": status.busy_workers,
            "max_workers": facts.max_workers,
            "concurrency": status.uploads.concurrency,
            "rate_limit": None if math.isinf(limit) else limit,
            "put_cost_dollars_per_day": status.put_cost_dollars_per_day,
        },
        "credentials_expire_seconds": status.credentials_expire_seconds,
        "dead_letters": None if dead_letters is None else list(map(asdict, dead_letters)),
        "rates": _rates(samples),
        "settings": [
            {"name": name, "value": value, "default": default}
            for name, value, default in facts.changed_settings
        ],
    }


def _rates(samples: Sequence[Sample]) -> dict[str, float | None]:
    """Return rates over the last ten seconds, and those of objects over all samples."""
    if not samples:
        return dict.fromkeys(
            (
                "accepted_per_second",
                "stored_per_second",
                "objects_per_hour",
                "mean_object_bytes",
                "mean_commit_seconds",
                "mean_upload_seconds",
            )
        )
    first, last = samples[0], samples[-1]
    ago = next((one for one in samples if one.at >= last.at - _RATE_SECONDS), last)
    objects = last.uploads - first.uploads
    return {
        "accepted_per_second": _quotient(last.accepted - ago.accepted, last.at - ago.at),
        "stored_per_second": _quotient(last.stored - ago.stored, last.at - ago.at),
        "objects_per_hour": _quotient(objects * _HOUR, last.at - first.at),
        "mean_object_bytes": _quotient(last.object_bytes - first.object_bytes, objects),
        "mean_commit_seconds": _quotient(
            last.commit_seconds - ago.commit_seconds, last.commits - ago.commits
        ),
        "mean_upload_seconds": _quotient(last.upload_seconds - first.upload_seconds, objects),
    }


def _quotient(amount: float, by: float) -> float | None:
    return amount / by if by > 0 else None
