"""The messages to systemd, and the sockets and variables from it."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from payloadd.errors import StartError
from payloadd.systemd.notify import Notifier, PassedSockets, is_journal

if TYPE_CHECKING:
    from collections.abc import Iterator

    import trio


@contextmanager
def manager(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Listen as systemd does, on a socket that the environment names."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name[1:] if name.startswith("@") else name)
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield sock


@pytest.mark.parametrize("abstract", [False, True])
def test_states_are_sent_to_the_notify_socket(
    abstract: bool,  # noqa: FBT001 - a parameter of the test
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`systemctl start` would wait until its timeout and then kill the daemon."""
    name = f"@payloadd-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with manager(name, monkeypatch) as sock:
        notifier = Notifier()
        assert notifier.enabled
        notifier.ready()
        notifier.stopping()
        notifier.extend(1.5)
        notifier.alive()
        assert sock.recv(100) == b"READY=1\nSTATUS=serving"
        assert sock.recv(100) == b"STOPPING=1\nSTATUS=draining"
        assert sock.recv(100) == b"EXTEND_TIMEOUT_USEC=1500000"
        assert sock.recv(100) == b"WATCHDOG=1"
    assert "NOTIFY_SOCKET" not in os.environ
    notifier.status("the socket is closed")  # must not raise


def test_a_status_is_one_short_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store's text could set MAINPID=1 of the unit; systemd drops a message that is too long."""
    with manager(str(tmp_path / "notify"), monkeypatch) as sock:
        Notifier().status("store:\nMAINPID=1\ud800" + "é" * 5000)
        message = sock.recv(10_000)
    assert message.startswith(b"STATUS=store: MAINPID=1\\ud800")
    assert b"\n" not in message
    assert len(message) < 4096


def test_a_manager_that_does_not_read_does_not_block_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon would hang for as long as systemd does."""
    with manager(str(tmp_path / "notify"), monkeypatch):
        notifier = Notifier()
        queue = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text())
        for _ in range(2 * queue + 10):
            notifier.alive()


def test_without_systemd_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon would not start in a container or from a terminal."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not Notifier().enabled
    Notifier().ready()


@pytest.mark.parametrize(
    ("pid", "microseconds", "seconds"),
    [
        ("ours", "30000000", 30.0),
        ("", "500000", 0.5),  # sd_watchdog_enabled(3): without WATCHDOG_PID it is for any process
        ("1", "30000000", None),
        ("ours", "0", None),
        ("ours", "often", None),
        ("ours", "", None),
    ],
)
def test_the_period_of_the_watchdog_is_read(
    pid: str, microseconds: str, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manager would end a daemon that does not know that it has to send WATCHDOG=1."""
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "ours" else pid)
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    assert Notifier().watchdog_seconds == seconds
    assert not {"WATCHDOG_PID", "WATCHDOG_USEC"} & os.environ.keys()


@pytest.fixture
def listening() -> Iterator[list[int]]:
    """Return two descriptors of listening sockets that follow each other."""
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        # High numbers, which nothing else uses.
        fds = [os.dup2(one.fileno(), 800), os.dup2(two.fileno(), 801)]
        yield fds


def pass_on(monkeypatch: pytest.MonkeyPatch, count: str, names: str, pid: int) -> PassedSockets:
    """Return the sockets that these variables pass, the first one at descriptor 800."""
    monkeypatch.setenv("LISTEN_PID", str(pid))
    monkeypatch.setenv("LISTEN_FDS", count)
    monkeypatch.setenv("LISTEN_FDNAMES", names)
    passed = PassedSockets(first_fd=800)
    assert not {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} & os.environ.keys()
    return passed


async def close(listeners: list[trio.SocketListener]) -> list[int]:
    """Close listeners, return the descriptors they had."""
    fds = [listener.socket.fileno() for listener in listeners]
    for listener in listeners:
        assert not os.get_inheritable(listener.socket.fileno())
        await listener.aclose()
    return fds


@pytest.mark.parametrize("names", ["payloadd.socket:admin", "payloadd.socket", ""])
async def test_passed_sockets_are_used(
    listening: list[int], names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restart behind a socket unit would lose the connections that wait in its backlog."""
    passed = pass_on(monkeypatch, "2", names, os.getpid())
    public, admin = await close(passed.listeners()), await close(passed.listeners(admin=True))
    assert (public, admin) == (
        (listening[:1], listening[1:]) if "admin" in names else (listening, [])
    )


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize(("count", "pid"), [("2", 1), ("two", None), ("", None)])
def test_sockets_for_another_process_are_not_touched(
    count: str, pid: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parent's variables would make the daemon close descriptors that are not its own."""
    passed = pass_on(monkeypatch, count, "", pid or os.getpid())
    assert passed.listeners() == passed.listeners(admin=True) == []
    os.close(800)
    os.close(801)


def test_a_descriptor_that_is_no_listening_socket_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong socket unit would give a traceback, or a daemon that no client can reach."""
    passed = pass_on(monkeypatch, "1", "", os.getpid())
    with pytest.raises(StartError, match="cannot listen on the sockets that LISTEN_FDS passes"):
        passed.listeners()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        os.dup2(datagrams.fileno(), 800)
    with pytest.raises(StartError, match="cannot listen on the sockets that LISTEN_FDS passes"):
        pass_on(monkeypatch, "1", "", os.getpid()).listeners()


def test_a_stream_to_journald_is_recognized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Priorities would be missing in the journal, or be in front of the lines of a file."""
    with (tmp_path / "log").open("w") as file:
        status = os.fstat(file.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert is_journal(file)
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")
        assert not is_journal(file)
        monkeypatch.delenv("JOURNAL_STREAM")
        assert not is_journal(file)
    assert not is_journal(file)
