"""Entries in the native protocol of journald, received by a socket like journald's."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import re
import socket
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.config import settings as config
from payloadd.observe import journald, logs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EVIL: Final = "x\x1b[2J\x85\u2028\u202e\x9b2K\n\ud800PRIORITY=0"
DANGEROUS: Final = set("\x1b\x85\u2028\u202e\x9b\x07")
NAME: Final = re.compile("[A-Z][A-Z0-9_]{0,63}")

pytestmark = pytest.mark.usefixtures("logging_restored")


@pytest.fixture
def receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Listen where the daemon looks for journald."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        monkeypatch.setattr(journald, "SOCKET", str(tmp_path / "socket"))
        yield sock


def decode(data: bytes) -> list[tuple[str, str]]:
    """Return the fields of an entry, read as the document of the protocol says."""
    found = []
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if equals:
            data = rest
        else:
            size = int.from_bytes(rest[:8], "little")
            value, end, data = rest[8 : 8 + size], rest[8 + size : 9 + size], rest[9 + size :]
            assert end == b"\n"
        found.append((name.decode(), value.decode()))
    return found


def received(sock: socket.socket) -> dict[str, str]:
    """Return the fields of the next datagram."""
    return dict(decode(sock.recv(1_000_000)))


def configure(log_format: str = "journald", *, leads_to_journald: bool = True) -> io.StringIO:
    """Send the log to journald; returns the stream for what it does not take."""
    stream = io.StringIO()
    settings = config.load({"LOG_FORMAT": log_format})
    logs.configure(settings, stream, journald=leads_to_journald)
    return stream


@pytest.mark.parametrize(
    ("log_format", "leads_to_journald"), [("journald", False), ("journald", True), ("auto", True)]
)
def test_an_event_is_an_entry_with_its_fields(
    receiver: socket.socket,
    log_format: str,
    leads_to_journald: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """`journalctl PAYLOADD_EVENT=store_unavailable` would find nothing."""
    stream = configure(log_format, leads_to_journald=leads_to_journald)
    logs.get_logger("payloadd.x").warning(
        "store_unavailable", code="Err", detail="no such\thost", tries=3, since=None, codes=["a b"]
    )
    assert received(receiver) == {
        "MESSAGE": 'store_unavailable code=Err detail="no such\\u0009host" tries=3 since=null'
        ' codes=["a b"]',
        "PRIORITY": "4",
        "SYSLOG_FACILITY": "3",
        "SYSLOG_IDENTIFIER": "payloadd",
        "PAYLOADD_EVENT": "store_unavailable",
        "PAYLOADD_LEVEL": "warning",
        "PAYLOADD_LOGGER": "payloadd.x",
        "PAYLOADD_CODE": "Err",
        "PAYLOADD_DETAIL": "no such\\u0009host",
        "PAYLOADD_TRIES": "3",
        "PAYLOADD_SINCE": "null",
        "PAYLOADD_CODES": '["a b"]',
    }
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("log_format", "leads_to_journald"), [("json", True), ("text", True), ("auto", False)]
)
def test_other_formats_send_no_entry(
    receiver: socket.socket,
    log_format: str,
    leads_to_journald: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """A shipper that reads JSON lines from the journal would find none."""
    stream = configure(log_format, leads_to_journald=leads_to_journald)
    logs.get_logger("x").warning("stored")
    assert "stored" in stream.getvalue()
    with pytest.raises(BlockingIOError):
        receiver.recv(1)


def test_a_traceback_is_in_the_message_and_in_a_field(receiver: socket.socket) -> None:
    """The cause of a failure would be missing in the journal."""
    configure()
    logs.get_logger("x").error("internal_failure", exc_info=ValueError(EVIL))
    fields = received(receiver)
    assert fields["PRIORITY"] == "3"
    first, *others = fields["MESSAGE"].split("\n")
    assert first == "internal_failure"
    assert others
    assert all(line.startswith("  ") for line in others if line)
    assert "ValueError: x\\u001b[2J" in fields["PAYLOADD_EXCEPTION"]
    assert not set("".join(fields.values())) & DANGEROUS


def test_a_library_line_is_an_entry_without_secrets(receiver: socket.socket) -> None:
    """A secret that a library logs would be readable by every reader of the journal."""
    configure()
    logging.getLogger("botocore.x").critical(
        "half %s of https://a:secret@host", "done", exc_info=RuntimeError("secret")
    )
    fields = received(receiver)
    assert fields["PAYLOADD_EVENT"] == "half done of https://***@host (RuntimeError)"
    assert fields["PRIORITY"] == "2"
    assert not [text for text in fields.values() if "secret" in text]


def test_a_value_cannot_forge_a_field_or_reach_the_terminal(receiver: socket.socket) -> None:
    """A client could hide its entry, or rewrite the screen on which `journalctl` writes."""
    configure()
    logs.get_logger("x").warning(EVIL, nested={"a": [EVIL]}, error=Exception(EVIL), **{EVIL: EVIL})
    data = receiver.recv(100_000)
    fields = decode(data)
    names = [name for name, _ in fields]
    assert names.count("PRIORITY") == names.count("MESSAGE") == 1
    assert dict(fields)["PRIORITY"] == "4"
    assert all(NAME.fullmatch(name) for name in names)
    assert not set(data.decode()) & DANGEROUS


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("code", "PAYLOADD_CODE"),
        ("_x", "PAYLOADD__X"),
        ("9-a.ü=\n", "PAYLOADD_9_A____"),
        ("x" * 100, "PAYLOADD_" + "X" * 55),
    ],
)
def test_names_of_fields_are_those_that_journald_allows(name: str, expected: str) -> None:
    """Journald would drop the field."""
    assert journald.field_name(name) == expected


@given(
    st.lists(
        st.tuples(
            st.from_regex(NAME, fullmatch=True),
            st.text(st.characters(codec="utf-8")),
        )
    )
)
def test_any_value_arrives_unchanged(fields: list[tuple[str, str]]) -> None:
    """A line break in a value would begin another field."""
    assert decode(journald.encode(fields)) == fields


def test_a_large_entry_is_sent_as_a_sealed_file(receiver: socket.socket) -> None:
    """A long traceback would be missing; journald refuses a file that can still change."""
    stream = configure()
    text = "x" * 10_000_000
    logs.get_logger("x").warning("request_refused", detail=text)
    data, (fd,), *_ = socket.recv_fds(receiver, 100, 2)
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        content = os.pread(fd, 2 * len(text) + 10_000, 0)
    finally:
        os.close(fd)
    assert data == b""
    assert seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
    assert dict(decode(content))["PAYLOADD_DETAIL"] == text
    assert stream.getvalue() == ""


@pytest.mark.parametrize("leads_to_journald", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_what_a_busy_journald_does_not_take_goes_to_standard_error(
    receiver: socket.socket,
    leads_to_journald: bool,  # noqa: FBT001 - a parameter of the test
    large: bool,  # noqa: FBT001
) -> None:
    """A journald that does not read would stop the event loop, or the line would be lost."""
    stream = configure(leads_to_journald=leads_to_journald)
    while journald.send(b"MESSAGE=x\n"):
        pass
    logs.get_logger("x").error("store_failed", detail="y" * (10_000_000 if large else 1))
    line = stream.getvalue()
    assert line.startswith("<3>") == leads_to_journald
    assert json.loads(line.removeprefix("<3>"))["event"] == "store_failed"
    while True:
        try:
            receiver.recv(100)
        except BlockingIOError:
            break
    logs.get_logger("x").error("again")
    assert received(receiver)["PAYLOADD_EVENT"] == "again"


def test_without_journald_lines_go_to_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log of a daemon in a container without journald would be empty."""
    monkeypatch.setattr(journald, "SOCKET", str(tmp_path / "missing"))
    stream = configure(leads_to_journald=False)
    logs.get_logger("x").info("listening")
    assert json.loads(stream.getvalue())["event"] == "listening"


def test_an_event_that_cannot_be_written_raises_nothing(
    receiver: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake in a log call would end the daemon."""
    configure()
    logs.get_logger("x").info("stored", wrong={("a", "b"): 1})
    assert "Logging error" in capsys.readouterr().err
    with pytest.raises(BlockingIOError):
        receiver.recv(1)
