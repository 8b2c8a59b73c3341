"""Log lines with values that a client, a server or a library chose."""

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


def output(log_format: Format, *, journald: bool = False) -> io.StringIO:
    """Send the log to the stream that is returned."""
    stream = io.StringIO()
    logs.configure(config.load({"LOG_FORMAT": log_format}), stream, journald=journald)
    return stream


@pytest.mark.parametrize("journald", [False, True])
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_value_cannot_forge_a_line(log_format: Format, journald: bool) -> None:  # noqa: FBT001
    """A client could write lines of its own into the log, or change what a terminal shows."""
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
    """An error that repeats what a server said would do the same."""
    stream = output(log_format)
    logs.get_logger("x").error("request_failed", exc_info=ValueError(EVIL))
    text = stream.getvalue()
    assert not set(text) & set(DANGEROUS)
    first, *others = text.splitlines()
    assert "request_failed" in first
    assert all(line.startswith("  ") for line in others)
    assert log_format == "json" or others


def test_json_says_exactly_what_it_was() -> None:
    """A search for the client that sent it would find nothing."""
    stream = output("json")
    logs.get_logger("x").warning("request_refused", user_agent=EVIL, name="Zürich 日本 👩‍👩‍👧")
    line = json.loads(stream.getvalue())
    assert (line["user_agent"], line["name"]) == (EVIL, "Zürich 日本 👩‍👩‍👧")


def test_text_of_other_scripts_stays() -> None:
    """A person could not read the names of most of the world."""
    stream = output("text")
    logs.get_logger("x").warning("stored", name="Zürich-日本-👩‍👩‍👧")
    assert "Zürich-日本-👩‍👩‍👧" in stream.getvalue()


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_a_credential_process_says_is_not_logged(log_format: Format) -> None:
    """The library logs the failure of a refresh with a traceback, and the program's words in it."""
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
