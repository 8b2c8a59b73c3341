"""Streams whose reader is gone."""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import TYPE_CHECKING

from payloadd.config.settings import load
from payloadd.observe import logs, standard_streams

if TYPE_CHECKING:
    import pytest


def without_reader() -> io.TextIOWrapper:
    """Return a stream whose writes fail."""
    reader, writer = os.pipe()
    os.close(reader)
    return io.TextIOWrapper(os.fdopen(writer, "wb"), line_buffering=True)


def test_a_line_for_a_stream_without_a_reader_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command would end with the exit status of the failed write."""
    with without_reader() as out, without_reader() as error:
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", error)
        for _ in range(2):
            standard_streams.write_line("line")
            standard_streams.write_line("line", error=True)
        standard_streams.flush()


def test_text_that_a_stream_still_holds_does_not_fail_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Python would exit with 120."""
    with without_reader() as out:
        monkeypatch.setattr(sys, "stdout", out)
        out.write("no line end")
        standard_streams.flush()


def test_a_stream_without_a_descriptor_is_left_alone() -> None:
    """An embedding program that replaces a stream would get an exception."""
    standard_streams.give_up(io.StringIO())


def test_log_lines_are_dropped_without_a_traceback_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every log line would cost the time of a traceback."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    with without_reader() as stream:
        logs.configure(load({"LOG_FORMAT": "json"}), stream)
        for _ in range(3):
            logs.get_logger("payloadd.test").error("event")
        root.handlers.clear()
    assert capsys.readouterr().err == ""


def test_another_error_of_a_log_line_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bug in a log line would be invisible."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    logs.configure(load({"LOG_FORMAT": "json"}), io.StringIO())
    logging.getLogger("payloadd.test").error("%d", "no number")
    assert "no number" in capsys.readouterr().err
