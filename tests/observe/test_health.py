"""The phase, the troubles, and the snapshot of all figures."""

from __future__ import annotations

import time

import pytest

from payloadd.observe.health import Health
from payloadd.observe.status import (
    JournalFigures,
    PayloadFigures,
    QueueFigures,
    Status,
    Trouble,
    UploadFigures,
)


def test_a_code_is_to_be_logged_once_and_the_trouble_keeps_its_start() -> None:
    """A log line for each failed attempt hides the others; a reset start hides the duration."""
    health = Health()
    assert health.report("store", "AccessDenied", "no")
    assert not health.report("store", "AccessDenied", "no")
    assert health.report("store", "SlowDown", "less")
    assert not health.report("store", "AccessDenied", "no")
    since = health.troubles["store"].since
    assert health.report("store", "NoSuchBucket", "gone")
    assert health.troubles["store"].since == since
    trouble = health.clear("store")
    assert trouble is not None
    assert trouble.code == "NoSuchBucket"
    assert health.clear("store") is None


def test_a_trouble_ends_with_its_last_cause() -> None:
    """Missing rights for one prefix would be over with every object below another prefix."""
    health = Health()
    assert health.report("store", "AccessDenied", "no rights", "a")
    assert health.report("store", "SlowDown", "less", "b")
    assert health.clear("store") is None
    assert health.clear("store", "c") is None
    assert health.clear("store", "b") is None
    assert health.troubles["store"].code == "AccessDenied"
    # It was logged before, and the part has not worked since.
    assert not health.report("store", "SlowDown", "less", "b")
    assert health.troubles["store"].code == "SlowDown"
    assert health.clear("store", "b") is None
    over = health.clear("store", "a")
    assert over is not None
    assert over.code == "AccessDenied"
    assert health.trouble("store") is None
    assert health.troubles == {}
    assert health.report("store", "SlowDown", "less", "b")


def test_a_snapshot_has_zeros_for_parts_that_do_not_exist_yet() -> None:
    """A scrape during the start would be an error."""
    assert Health().snapshot() == Status()


def test_a_snapshot_has_the_figures_of_all_parts_and_does_not_change() -> None:
    """The texts that are rendered from it would contradict each other."""
    health = Health()
    health.phase = "serving"
    health.payload_figures = lambda: PayloadFigures(accepted=3, stored=1, open=2)
    health.queue_figures = lambda: QueueFigures(jobs=2)
    health.journal_figures = lambda: JournalFigures(jobs=2, payloads=2, bytes=200)
    health.busy_workers = lambda: 1
    health.upload_figures = lambda: UploadFigures(concurrency=8)
    status = health.snapshot()
    health.report("store", "AccessDenied", "403")
    health.phase = "draining"
    assert status == Status(
        "serving",
        PayloadFigures(accepted=3, stored=1, open=2),
        QueueFigures(jobs=2),
        JournalFigures(jobs=2, payloads=2, bytes=200),
        busy_workers=1,
        uploads=UploadFigures(concurrency=8),
    )
    since = health.troubles["store"].since
    assert health.snapshot().troubles == {"store": Trouble("AccessDenied", "403", since)}


def test_a_snapshot_has_the_seconds_until_credentials_expire() -> None:
    """An operator would have to subtract Unix times."""
    health = Health()
    assert health.snapshot().credentials_expire_seconds is None
    health.credentials_expire = lambda: time.time() + 100
    health.put_cost = lambda: 2.5
    assert health.snapshot().credentials_expire_seconds == pytest.approx(100, abs=10)
    assert health.snapshot().put_cost_dollars_per_day == 2.5


def test_a_reason_with_a_file_name_that_is_not_utf_8_is_text() -> None:
    """`/readyz` and the status page would answer 500 instead of the reason."""
    health = Health()
    health.report("store", "EACCES", "Permission denied: /data/\udcff")
    assert health.troubles["store"].reason == "Permission denied: /data/\\udcff"
