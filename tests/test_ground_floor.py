"""Health, logs and the words exchanged with systemd."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
from typing import TYPE_CHECKING

import pytest
import structlog

from daemon import config, logs
from daemon.health import Health
from daemon.systemd import Notifier, passed_sockets

if TYPE_CHECKING:
    from pathlib import Path


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


@pytest.fixture
def _logging_restored() -> object:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("_logging_restored")
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


@pytest.mark.usefixtures("_logging_restored")
def test_a_person_gets_readable_lines() -> None:
    """JSON on a terminal makes the first try of the README unreadable."""
    stream = io.StringIO()
    logs.configure(config.load({"LOG_FORMAT": "text", "LOG_LEVEL": "warning"}), stream)
    logs.get_logger("room").info("quiet")
    logs.get_logger("room").warning("durability_memory")
    assert "durability_memory" in stream.getvalue()
    assert "quiet" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_when_ready(
    abstract: bool,  # noqa: FBT001 - a parameter of the test
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`systemctl start` would wait until its timeout and then kill the daemon."""
    name = f"@payloadd-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0", 1) if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notifier = Notifier()
        notifier.ready()
        notifier.stopping()
        notifier.status("stored 3")
        assert manager.recv(100) == b"READY=1\nSTATUS=serving"
        assert manager.recv(100) == b"STOPPING=1\nSTATUS=draining"
        assert manager.recv(100) == b"STATUS=stored 3"
    assert "NOTIFY_SOCKET" not in os.environ
    notifier.status("nobody listens")  # must not raise


def test_without_systemd_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon also runs in a container or by hand."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier().ready()


def test_sockets_of_systemd_are_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart behind a socket unit would lose the connections that wait in its backlog."""
    with socket.create_server(("127.0.0.1", 0)) as passed:
        port = passed.getsockname()[1]
        monkeypatch.setattr("daemon.systemd._FIRST_FD", os.dup(passed.fileno()))
        monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", "1")
        monkeypatch.setenv("LISTEN_FDNAMES", "payloadd.socket")
        (taken,) = passed_sockets()
    with taken:
        assert taken.getsockname()[1] == port
        assert not taken.get_inheritable()
    assert "LISTEN_FDNAMES" not in os.environ


def test_sockets_meant_for_another_process_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parent's variables must not make the daemon grab file descriptors that are not its own."""
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert passed_sockets() == []
    assert "LISTEN_FDS" not in os.environ
