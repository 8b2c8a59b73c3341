"""Log lines: their format, and values that a client, a server or a library chose."""

from __future__ import annotations

import io
import json
import logging
from typing import Literal

import pytest

from payloadd.config import settings as config
from payloadd.observe import logs

EVIL = "x\x1b[2J\x85\u2028\u202e\x9b2K\n<2>2026-01-01 [critical] forged"
DANGEROUS = "\x1b\x85\u2028\u202e\x9b\x07"
Format = Literal["text", "json"]

pytestmark = pytest.mark.usefixtures("logging_restored")


def output(log_format: Format, *, journald: bool = False, level: str = "info") -> io.StringIO:
    """Send the log to the stream that is returned."""
    stream = io.StringIO()
    settings = config.load({"LOG_FORMAT": log_format, "LOG_LEVEL": level})
    logs.configure(settings, stream, journald=journald)
    return stream


def test_every_line_is_json_with_time_level_and_event() -> None:
    """Log shippers parse it; a library's line must not break the format."""
    stream = output("json")
    logs.get_logger("x").info("stored", payloads=3)
    logging.getLogger("some.library").warning("half %s", "done")
    logging.getLogger("botocore.auth").info("secret")
    try:
        int("one")
    except ValueError:
        logs.get_logger("x").exception("internal_failure")
    ours, library, failure = (json.loads(line) for line in stream.getvalue().splitlines())
    assert ours.items() >= {"event": "stored", "payloads": 3, "level": "info"}.items()
    assert ours["timestamp"].endswith("Z")
    for line in (ours, library, failure):
        assert [*line][:3] == ["timestamp", "level", "event"]
    assert library["event"] == "half done"
    assert failure["exception"][0]["exc_type"] == "ValueError"


def test_every_line_for_journald_begins_with_its_priority() -> None:
    """`journalctl -p err` would show nothing, or half of a traceback."""
    stream = output("text", journald=True)
    logs.get_logger("x").warning("store_unavailable")
    logging.getLogger("some.library").info("done")
    try:
        int("one")
    except ValueError:
        logs.get_logger("x").critical("internal_failure", exc_info=True)
    waits, done, *failure = stream.getvalue().splitlines()
    assert (waits[:3], done[:3]) == ("<4>", "<6>")
    assert len(failure) > 3
    assert {line[:3] for line in failure} == {"<2>"}


def test_text_lines_are_readable_and_below_the_level_nothing_is_logged() -> None:
    """JSON on a terminal makes the first try of the README unreadable."""
    stream = output("text", level="warning")
    logs.get_logger("x").info("quiet")
    logs.get_logger("x").warning("durability_memory")
    assert "durability_memory" in stream.getvalue()
    assert "quiet" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("journald", [False, True])
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_value_cannot_forge_a_line(log_format: Format, journald: bool) -> None:  # noqa: FBT001
    """A client could write lines of its own into the log, or rewrite the screen of a terminal."""
    stream = output(log_format, journald=journald)
    log = logs.get_logger("x")
    log.warning("request_refused", user_agent=EVIL)
    log.warning("request_refused", nested={"a": [EVIL, ("b", EVIL)], EVIL: 1})
    log.warning(EVIL, path=Exception(EVIL))
    logging.getLogger("library").warning("says %s", EVIL)
    text = stream.getvalue()
    assert len(text.splitlines()) == 4
    assert not set(text) & set(DANGEROUS)
    assert all(line.startswith("<4>") == journald for line in text.splitlines())


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_text_of_an_exception_cannot_forge_a_line(log_format: Format) -> None:
    """A server could write lines of its own into the log by an error that repeats its text."""
    stream = output(log_format)
    logs.get_logger("x").error("request_failed", exc_info=ValueError(EVIL))
    text = stream.getvalue()
    assert not set(text) & set(DANGEROUS)
    first, *others = text.splitlines()
    assert "request_failed" in first
    assert all(line.startswith("  ") for line in others)
    assert log_format == "json" or others


def test_json_keeps_the_exact_value() -> None:
    """A search for the client that sent it would find nothing."""
    stream = output("json")
    logs.get_logger("x").warning("request_refused", user_agent=EVIL, name="Zürich 日本 👩‍👩‍👧")
    line = json.loads(stream.getvalue())
    assert (line["user_agent"], line["name"]) == (EVIL, "Zürich 日本 👩‍👩‍👧")


def test_text_of_other_scripts_is_not_escaped() -> None:
    """Names in most scripts of the world would be unreadable."""
    stream = output("text")
    logs.get_logger("x").warning("stored", name="Zürich-日本-👩‍👩‍👧")
    assert "Zürich-日本-👩‍👩‍👧" in stream.getvalue()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_output_of_a_credential_process_is_not_logged(log_format: Format) -> None:
    """The library logs a failed refresh with a traceback that holds the program's output."""
    stream = output(log_format)
    logging.getLogger("botocore.credentials").warning(
        "Refreshing failed during %s period of %s.",
        "mandatory",
        "https://user:pa/ss@host",
        exc_info=RuntimeError("vault: cannot use token s.SECRET"),
    )
    text = stream.getvalue()
    assert "SECRET" not in text
    assert "ss@" not in text
    assert "during mandatory period of https://***@host. (RuntimeError)" in text
