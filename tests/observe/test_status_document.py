"""The document of ``/status.json``."""

from __future__ import annotations

import json
import math
from typing import Any

from msgspec.json import encode

from payloadd import __version__
from payloadd.config import settings as config
from payloadd.errors import RefusedError
from payloadd.observe.history import Sample
from payloadd.observe.status import (
    DeadLetterGroup,
    JournalFigures,
    PayloadFigures,
    QueueFigures,
    Status,
    Trouble,
    UploadFigures,
)
from payloadd.observe.status_document import Facts, start_fields, status_document

FACTS = Facts(
    version="1.2",
    host="machine",
    process=7,
    started=1000.0,
    store="s3://bucket",
    durability="disk",
    max_queue=11,
    max_queue_bytes=12,
    journal_max_bytes=13,
    max_workers=14,
    changed_settings=[("MAX_QUEUE", "11", "10000")],
)
STATUS = Status(
    phase="serving",
    payloads=PayloadFigures(
        accepted=21, stored=22, dead=23, open=24, oldest_seconds=2.5, drained_per_second=2.6
    ),
    queue=QueueFigures(jobs=31, bytes=32, put_back=33),
    journal=JournalFigures(
        jobs=41, payloads=42, bytes=43, idempotency_keys=44, missing_payloads=45
    ),
    busy_workers=51,
    troubles={"store": Trouble("AccessDenied", "AccessDenied: no", 0.0)},
    uploads=UploadFigures(concurrency=61, rate_limit=6.5),
    credentials_expire_seconds=71.5,
    put_cost_dollars_per_day=8.5,
)


def sample(at: float, **figures: float) -> Sample:
    """Return a sample with these figures, and zeros."""
    values: dict[str, Any] = dict.fromkeys(Sample._fields, 0) | figures | {"at": at}
    return Sample(**values)


def test_the_document_has_every_figure() -> None:
    """The page, and scripts that read the document, would show other figures."""
    refusal = RefusedError("QUEUE_FULL", "the queue is full", 1)
    groups = [DeadLetterGroup("default", "EntityTooLarge", 2, 200)]
    document = status_document(STATUS, FACTS, refusal, [], groups)
    advice = document["troubles"][0].pop("advice")
    assert "s3:PutObject" in advice
    assert document.pop("rates") == dict.fromkeys(
        (
            *("accepted_per_second", "stored_per_second", "objects_per_hour"),
            *("mean_object_bytes", "mean_commit_seconds", "mean_upload_seconds"),
        )
    )
    assert document == {
        "phase": "serving",
        "ready": False,
        "refusal": {"code": "QUEUE_FULL", "detail": "the queue is full"},
        "version": "1.2",
        "host": "machine",
        "process": 7,
        "started": 1000.0,
        "store": "s3://bucket",
        "durability": "disk",
        "troubles": [
            {
                "part": "store",
                "code": "AccessDenied",
                "reason": "AccessDenied: no",
                "since": "1970-01-01T00:00:00.000+00:00",
            }
        ],
        "payloads": {
            "accepted": 21,
            "stored": 22,
            "dead": 23,
            "open": 24,
            "oldest_seconds": 2.5,
            "drained_per_second": 2.6,
            "missing": 45,
        },
        "queue": {"jobs": 64, "bytes": 32, "max_jobs": 11, "max_bytes": 12},
        "journal": {
            "jobs": 41,
            "payloads": 42,
            "bytes": 43,
            "max_bytes": 13,
            "idempotency_keys": 44,
        },
        "uploads": {
            "busy_workers": 51,
            "max_workers": 14,
            "concurrency": 61,
            "rate_limit": 6.5,
            "put_cost_dollars_per_day": 8.5,
        },
        "credentials_expire_seconds": 71.5,
        "dead_letters": [
            {"stream": "default", "code": "EntityTooLarge", "letters": 2, "payloads": 200}
        ],
        "settings": [{"name": "MAX_QUEUE", "value": "11", "default": "10000"}],
    }


def test_rates_are_of_the_last_ten_seconds_and_those_of_objects_of_all_samples() -> None:
    """An operator would take a rate of yesterday for that of now."""
    samples = [
        sample(0.0),
        sample(90.0, accepted=1000, stored=900, commits=10, commit_seconds=1.0),
        sample(
            100.0,
            accepted=1500,
            stored=1000,
            commits=20,
            commit_seconds=1.5,
            uploads=50,
            upload_seconds=10.0,
            object_bytes=5000,
        ),
    ]
    assert status_document(STATUS, FACTS, None, samples)["rates"] == {
        "accepted_per_second": 50.0,
        "stored_per_second": 10.0,
        "objects_per_hour": 1800.0,
        "mean_object_bytes": 100.0,
        "mean_commit_seconds": 0.05,
        "mean_upload_seconds": 0.2,
    }


def test_without_samples_or_uploads_there_are_no_rates() -> None:
    """A daemon that has just started would divide by zero."""
    for samples in ([], [sample(5.0)], [sample(5.0), sample(6.0)]):
        rates = status_document(STATUS, FACTS, None, samples)["rates"]
        assert rates["mean_object_bytes"] is None
        assert rates["mean_commit_seconds"] is None
        json.dumps(rates, allow_nan=False)


def test_numbers_that_are_not_finite_are_null() -> None:
    """JSON has no such numbers: no browser could read the document."""
    assert status_document(Status(), FACTS, None, [])["uploads"]["rate_limit"] is None
    odd = Status(
        payloads=PayloadFigures(oldest_seconds=math.inf, drained_per_second=math.nan),
        credentials_expire_seconds=-math.inf,
    )
    document = json.loads(encode(status_document(odd, FACTS, None, [])))
    assert document["payloads"]["oldest_seconds"] is None
    assert document["payloads"]["drained_per_second"] is None
    assert document["credentials_expire_seconds"] is None


def test_the_facts_of_a_process_have_no_secret() -> None:
    """Every reader of the page would have the keys of the bucket."""
    settings = config.load(
        {
            "STORE_URL": "s3://bucket/prefix",
            "AWS_ACCESS_KEY_ID": "AKIASECRETKEY",
            "AWS_SECRET_ACCESS_KEY": "the-secret",
            "AWS_SESSION_TOKEN": "the-token",
            "MAX_QUEUE": "77",
        }
    )
    facts = Facts.of(settings, 5.0)
    assert (facts.store, facts.max_queue, facts.started) == ("s3://bucket/prefix", 77, 5.0)
    text = encode(status_document(STATUS, facts, None, [])).decode()
    assert "AKIASECRETKEY" not in text
    assert "the-secret" not in text
    assert "the-token" not in text


def test_the_start_is_logged_with_what_the_daemon_is() -> None:
    """The log of several daemons would not say which of them stores where."""
    settings = config.load({"STORE_URL": "s3://bucket/a", "STREAMS": "clicks"})
    assert start_fields(settings) == {
        "version": __version__,
        "store": "s3://bucket/a",
        "durability": "disk",
        "streams": ["default", "clicks"],
    }
