"""Health and logs."""

from __future__ import annotations

import io
import json
import logging

import pytest

from payloadd.config import settings as config
from payloadd.errors import JITTER, RefusedError
from payloadd.observe import logs
from payloadd.observe.health import Health


def test_a_trouble_is_news_once_and_keeps_its_start() -> None:
    """A log line for every failed attempt buries the log; a reset clock hides how long it lasts."""
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
    """One prefix without rights among others would be over with every object of theirs."""
    health = Health()
    assert health.report("store", "AccessDenied", "no rights", "a")
    assert health.report("store", "SlowDown", "less", "b")
    assert health.clear("store") is None
    assert health.clear("store", "c") is None
    assert health.clear("store", "b") is None
    assert health.troubles["store"].code == "AccessDenied"
    # It was said already, and the part has not worked since.
    assert not health.report("store", "SlowDown", "less", "b")
    assert health.troubles["store"].code == "SlowDown"
    assert health.clear("store", "b") is None
    over = health.clear("store", "a")
    assert over is not None
    assert over.code == "AccessDenied"
    assert health.trouble("store") is None
    assert health.troubles == {}
    assert health.report("store", "SlowDown", "less", "b")


def test_clients_that_are_refused_together_come_back_apart() -> None:
    """A thousand clients that wait the same 5 s are a thousand requests in one second."""
    for least, most in ((0, 2), (1, 2), (5, 8), (60, 90)):
        error = RefusedError("DISK_ERROR", "", least)
        JITTER.seed(1)
        waits = [error.retry_after for _ in range(200)]
        assert (min(waits), max(waits)) == (max(1, least), most)
        JITTER.seed(1)
        assert [error.retry_after for _ in range(200)] == waits


@pytest.mark.usefixtures("logging_restored")
def test_every_line_is_json_with_time_level_and_event() -> None:
    """Log shippers parse it; a library's line must not break the format."""
    stream = io.StringIO()
    logs.configure(config.load({"LOG_FORMAT": "json"}), stream)
    logs.get_logger("room").info("stored", payloads=3)
    logging.getLogger("some.library").warning("half %s", "done")
    logging.getLogger("botocore.auth").info("secret")
    try:
        int("one")
    except ValueError:
        logs.get_logger("room").exception("internal_failure")
    ours, library, failure = (json.loads(line) for line in stream.getvalue().splitlines())
    assert ours.items() >= {"event": "stored", "payloads": 3, "level": "info"}.items()
    assert ours["timestamp"].endswith("Z")
    assert library["event"] == "half done"
    assert failure["exception"][0]["exc_type"] == "ValueError"


@pytest.mark.usefixtures("logging_restored")
def test_the_journal_is_told_how_severe_a_line_is() -> None:
    """`journalctl -p err` would show nothing, or half of a traceback."""
    stream = io.StringIO()
    logs.configure(config.load({"LOG_FORMAT": "text"}), stream, journald=True)
    logs.get_logger("room").warning("store_unavailable")
    logging.getLogger("some.library").info("done")
    try:
        int("one")
    except ValueError:
        logs.get_logger("room").critical("internal_failure", exc_info=True)
    waits, done, *failure = stream.getvalue().splitlines()
    assert (waits[:3], done[:3]) == ("<4>", "<6>")
    assert len(failure) > 3
    assert {line[:3] for line in failure} == {"<2>"}


@pytest.mark.usefixtures("logging_restored")
def test_a_person_gets_readable_lines() -> None:
    """JSON on a terminal makes the first try of the README unreadable."""
    stream = io.StringIO()
    logs.configure(config.load({"LOG_FORMAT": "text", "LOG_LEVEL": "warning"}), stream)
    logs.get_logger("room").info("quiet")
    logs.get_logger("room").warning("durability_memory")
    assert "durability_memory" in stream.getvalue()
    assert "quiet" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()
