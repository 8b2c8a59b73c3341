"""Compute the possible contents of files after a power cut, from recorded system calls.

strace(1) records every write and sync of a process. A write that was not synced may be on the disk
completely, in some of its sectors or not at all, independent of later writes. Names of files are
created and removed in order, and are durable once their folder was synced.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

_CALLS: Final = (
    "openat,pwrite64,pwritev,pwritev2,write,ftruncate,fsync,fdatasync,rename,renameat,renameat2,"
    "unlink,unlinkat,link,linkat,mkdir,mkdirat"
)
_LINE: Final = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (\d+)")
_PATH: Final = re.compile(r"<((?:\\x[0-9a-f]{2})+)>")
_TEXT: Final = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_SECTOR: Final = 512
REPORT_FILE: Final = "/dev/null"
"""The recorded process writes its reports, as JSON, to this file."""


@dataclass(frozen=True)
class Call:
    """One system call that changes or syncs a file, or a report of the process."""

    kind: str
    path: str = ""
    data: bytes = b""
    number: int = 0
    """The offset of a write, or the size after a truncation."""
    target: str = ""
    report: Any = None
    """The JSON value of a report."""


def record(folder: Path, arguments: Sequence[str]) -> list[Call]:
    """Run Python with ``arguments`` under strace; return its calls on files in ``folder``."""
    trace = folder.with_name(f"{folder.name}.strace")
    options = ("-f", "-y", "-xx", "-s", "10000000", "-e", f"trace={_CALLS}", "-o", str(trace))
    command = ("strace", *options, sys.executable, *arguments)
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    calls = []
    with trace.open() as lines:
        for line in lines:
            found = _LINE.match(line)
            if found is not None and (call := _call(*found.groups())) is not None:
                calls.append(call)
    return [call for call in calls if call.kind == "report" or _is_in(call.path, folder)]


def can_record() -> bool:
    """Return whether strace is installed and allowed to trace a process."""
    try:
        done = subprocess.run(("strace", "-o", os.devnull, "true"), check=False, timeout=60)
    except OSError:
        return False
    return done.returncode == 0


def _is_in(path: str, folder: Path) -> bool:
    inside = path == str(folder) or path.startswith(f"{folder}/")
    return inside and not path.endswith("-shm")


def _decode(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def _call(name: str, arguments: str, returned: str) -> Call | None:  # noqa: PLR0911 - one a call
    texts = [_decode(text) for text in _TEXT.findall(arguments)]
    paths = [_decode(path).decode() for path in _PATH.findall(arguments)]
    match name:
        case "openat" if "O_CREAT" in arguments or "O_TRUNC" in arguments:
            size = 0 if "O_TRUNC" in arguments else -1
            return Call("open", texts[0].decode(), number=size)
        case "write" if paths[0] == REPORT_FILE:
            return Call("report", report=json.loads(texts[0]))
        case "pwrite64":
            offset = int(arguments.rpartition(",")[2])
            return Call("write", paths[0], texts[0][: int(returned)], offset)
        case "pwritev" | "pwritev2":
            offset = int(arguments.rpartition("]")[2].split(",")[2])
            return Call("write", paths[0], b"".join(texts)[: int(returned)], offset)
        case "ftruncate":
            return Call("truncate", paths[0], number=int(arguments.rpartition(",")[2]))
        case "fsync" | "fdatasync":
            return Call("sync", paths[0])
        case "rename" | "renameat" | "renameat2" | "link" | "linkat":
            kind = "rename" if name.startswith("rename") else "link"
            return Call(kind, texts[0].decode(), target=texts[1].decode())
        case "unlink" | "unlinkat":
            return Call("unlink", texts[0].decode())
        case "mkdir" | "mkdirat":
            return Call("mkdir", texts[0].decode())
    return None


@dataclass
class _File:
    durable: bytes = b""
    pending: list[Call] = field(default_factory=list)


class Disk:
    """The files of one folder: their durable contents and the writes that may be lost."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._live: dict[str, _File] = {}
        self._durable: dict[str, _File] = {}
        self._names: list[tuple[str, str, _File | None]] = []
        """Changes of names that are not durable: the folder, the path, its file (None: removed)."""

    def apply(self, call: Call) -> None:
        """Apply the effect of a system call."""
        match call.kind:
            case "open":
                if call.path not in self._live:
                    self._name(call.path, _File())
                elif not call.number:
                    self._live[call.path].pending.append(Call("truncate", call.path))
            case "write" | "truncate":
                self._live[call.path].pending.append(call)
            case "sync" if call.path in self._live:
                file = self._live[call.path]
                file.durable, file.pending = _content(file.durable, file.pending), []
            case "sync":
                self._sync_folder(call.path)
            case "rename" | "link":
                self._name(call.target, self._live[call.path])
                if call.kind == "rename":
                    self._name(call.path, None)
            case "unlink" if call.path in self._live:
                self._name(call.path, None)

    def _name(self, path: str, file: _File | None) -> None:
        _set(self._live, path, file)
        self._names.append((str(Path(path).parent), path, file))

    def _sync_folder(self, folder: str) -> None:
        for parent, path, file in self._names:
            if parent == folder:
                _set(self._durable, path, file)
        self._names = [one for one in self._names if one[0] != folder]

    def is_durable(self, name: str) -> bool:
        """Return whether all writes to a file were synced."""
        file = self._live.get(str(self._folder / name))
        return file is None or not file.pending

    def write_image(self, folder: Path, chance: random.Random) -> None:
        """Write one possible state of the files after a power cut into ``folder``."""
        names = dict(self._durable)
        for _, path, file in self._names[: chance.randrange(len(self._names) + 1)]:
            _set(names, path, file)
        for path, file in names.items():
            target = folder / Path(path).relative_to(self._folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(_content(file.durable, _survivors(file.pending, chance)))


def _set(names: dict[str, _File], path: str, file: _File | None) -> None:
    if file is None:
        names.pop(path, None)
    else:
        names[path] = file


def _survivors(pending: Sequence[Call], chance: random.Random) -> list[Call]:
    """Return a random selection of the writes that were not synced, some of them torn."""
    match chance.randrange(4):
        case 0:
            return []
        case 1:
            return list(pending[: chance.randrange(len(pending) + 1)])
    left = []
    for call in pending:
        match chance.randrange(3):
            case 0:
                left.append(call)
            case 1 if call.kind == "write":
                left += _torn(call, chance)
    return left


def _torn(call: Call, chance: random.Random) -> list[Call]:
    """Return a random selection of the sectors of a write."""
    pieces = []
    start, end = call.number, call.number + len(call.data)
    while start < end:
        border = min(end, (start // _SECTOR + 1) * _SECTOR)
        if chance.randrange(2):
            piece = call.data[start - call.number : border - call.number]
            pieces.append(Call("write", call.path, piece, start))
        start = border
    return pieces


def _content(before: bytes, calls: Sequence[Call]) -> bytes:
    content = bytearray(before)
    for call in calls:
        size = call.number + len(call.data)
        if call.kind == "truncate":
            del content[call.number :]
        if len(content) < size:
            content.extend(bytes(size - len(content)))
        if call.kind == "write":
            content[call.number : size] = call.data
    return bytes(content)
