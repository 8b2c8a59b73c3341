"""Write log lines to systemd-journald with a field of its own for each field of the event.

journald's native protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/) is one datagram for each
entry, or a sealed memfd where the entry is larger than a datagram, so no library is used.
``journalctl PAYLOADD_EVENT=store_unavailable`` finds an event by its name.

Values may come from outside, and ``journalctl`` writes some of them to the terminal as they are:
control and invisible characters are escaped, see ``payloadd.escaping``.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import textwrap
from array import array
from typing import TYPE_CHECKING, Final

from payloadd.escaping import escape_controls, escape_controls_in_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SOCKET: Final = "/run/systemd/journal/socket"
"""Where journald receives entries."""

_IDENTIFIER: Final = "payloadd"
_FACILITY: Final = 3
"""LOG_DAEMON of syslog(3), which systemd also gives to the lines of standard error."""
_PREFIX: Final = "PAYLOADD_"
"""In front of every field of an event: a name from outside cannot be one of journald's."""
_LONGEST_NAME: Final = 64
"""Characters. journald drops a field with a longer name."""
_NOT_IN_A_NAME: Final = re.compile("[^A-Z0-9_]")
_PLAIN: Final = re.compile(r"[^\s\"'=]+")
_PRIORITIES: Final = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}
"""Levels of syslog(3)."""
_TOO_LARGE: Final = (errno.EMSGSIZE, errno.ENOBUFS)
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL

_NOT_IN_MESSAGE: Final = ("event", "level", "logger", "exception")


def priority(level: str) -> int:
    """Return the priority of a level of ``logging`` in lower case; an unknown one counts as info.

    The priorities are those of syslog(3).
    """
    return _PRIORITIES.get(level, 6)


def entry(event: Mapping[str, object]) -> bytes:
    """Return the entry of an event, in the form in which journald receives it.

    ``event`` has ``event``, ``level`` and the fields of the event; ``exception``, if present, is a
    traceback as text. ``MESSAGE`` is a readable line, with the traceback below it.
    """
    texts = {name: _text(name, value) for name, value in event.items()}
    # journald has a time of its own. It indexes every value, and each time is a new one.
    texts.pop("timestamp", None)
    own = [
        ("MESSAGE", _message(event, texts)),
        ("PRIORITY", str(priority(texts.get("level", "")))),
        ("SYSLOG_FACILITY", str(_FACILITY)),
        ("SYSLOG_IDENTIFIER", _IDENTIFIER),
    ]
    return encode(own + [(field_name(name), text) for name, text in texts.items()])


def field_name(name: str) -> str:
    """Return journald's name for a field of an event.

    journald drops fields with other characters than ``A-Z``, ``0-9`` and ``_``.
    """
    return (_PREFIX + _NOT_IN_A_NAME.sub("_", name.upper()))[:_LONGEST_NAME]


def encode(fields: Iterable[tuple[str, str]]) -> bytes:
    """Return fields in the form of the native protocol; values of several lines are allowed."""
    return b"".join(_encode_field(name.encode(), value.encode()) for name, value in fields)


def send(data: bytes) -> bool:
    """Send one entry; return False if journald does not take it now.

    Never blocks: neither a journald that does not read nor a missing one may stop the event loop.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
            try:
                sock.sendto(data, SOCKET)
            except OSError as error:
                if error.errno not in _TOO_LARGE:
                    raise
                _send_as_file(sock, data)
    except OSError:
        return False
    return True


def _send_as_file(sock: socket.socket, data: bytes) -> None:
    """Send an entry as the content of a memfd, which journald accepts only if it is sealed."""
    fd = os.memfd_create("payloadd-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(fd, "wb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        # Not socket.send_fds(): it ignores the address.
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))
        sock.sendmsg([], [rights], 0, SOCKET)


def _encode_field(name: bytes, value: bytes) -> bytes:
    if b"\n" not in value:
        return name + b"=" + value + b"\n"
    return name + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"


def _text(name: str, value: object) -> str:
    """Return a value as text: a text with its controls escaped, any other value as JSON."""
    if not isinstance(value, str):
        return json.dumps(value, default=repr)
    return escape_controls_in_lines(value) if name == "exception" else escape_controls(value)


def _message(event: Mapping[str, object], texts: Mapping[str, str]) -> str:
    """Return the line for readers; the lines of a traceback are indented below it."""
    fields = [
        f"{escape_controls(name)}={_quoted(text) if isinstance(event[name], str) else text}"
        for name, text in texts.items()
        if name not in _NOT_IN_MESSAGE
    ]
    line = " ".join([texts.get("event", ""), *fields])
    if traceback := texts.get("exception"):
        line += "\n" + textwrap.indent(traceback, "  ")
    return line


def _quoted(text: str) -> str:
    """Return a text in quotes if its end would not be clear without them."""
    return text if _PLAIN.fullmatch(text) else '"' + text.replace('"', '\\"') + '"'
