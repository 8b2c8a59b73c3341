"""The configurations of senders in the README, and the programs that run with them.

The functions block: programs are started with ``subprocess``, and one daemon serves many tests.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, Final

from tests.support.daemon import END_WITHIN, ROOT, START_WITHIN, environment
from tests.support.loopback import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

README_ADDRESS: Final = "127.0.0.1:8080"
_PAUSE: Final = 0.02


def configuration(heading: str) -> str:
    """Return the first block of code under a heading of the README."""
    _, found, rest = (ROOT / "README.md").read_text().partition(f"\n#### {heading}\n")
    assert found, f"the README has no heading {heading!r}"
    block = re.search(r"^```[a-z]*\n(.*?)^```$", rest, re.MULTILINE | re.DOTALL)
    assert block is not None
    return block[1]


def changed(text: str, **replacements: str) -> str:
    """Return a configuration with other values; each value to replace must occur in it."""
    for old, new in replacements.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def wait_for(condition: Callable[[], object], within: float = START_WITHIN) -> None:
    """Wait until ``condition`` returns something true. Raises TimeoutError."""
    end = time.monotonic() + within
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(condition)
        time.sleep(_PAUSE)


@dataclass
class SharedDaemon:
    """A daemon that serves several tests."""

    folder: Path

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of its log."""
        lines = (self.folder / "log").read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]

    @property
    def address(self) -> str:
        """Its address: host and port."""
        (line,) = (line for line in self.log if line["event"] == "listening")
        return str(line["public"][0])

    @property
    def socket(self) -> str:
        """The path of its Unix socket."""
        return str(self.folder / "socket")

    def refused_clients(self) -> list[str]:
        """Return the clients of refused requests."""
        return [line["client"] for line in self.log if line["event"] == "request_refused"]

    def wait_until_stored(self, text: str) -> None:
        """Wait until a payload that contains ``text`` is in the store."""
        objects = self.folder / "payloadd-data" / "objects"
        wait_for(lambda: any(text in path.read_text() for path in objects.rglob("*.ndjson")))


@contextmanager
def shared_daemon(folder: Path, **settings: str) -> Iterator[SharedDaemon]:
    """Start a daemon on a port and a Unix socket, and drain it at the end."""
    daemon = SharedDaemon(folder)
    bind = f"127.0.0.1:0,unix:{daemon.socket}"
    env = environment(folder, BIND=bind, ADMIN_BIND="off", **settings)
    command = [sys.executable, "-m", "payloadd", "serve"]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        ) as process,
    ):
        try:
            wait_for(lambda: any(line["event"] == "listening" for line in daemon.log))
            yield daemon
            process.send_signal(signal.SIGTERM)
            assert process.wait(END_WITHIN) == 0
        finally:
            process.kill()


@contextmanager
def running_program(folder: Path, *command: str) -> Iterator[Path]:
    """Run a program until the end of the body; yield the file of its output."""
    output = folder / "output"
    env = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "XDG_DATA_HOME": str(folder)}
    with (
        output.open("wb") as file,
        subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        ) as process,
    ):
        try:
            yield output
            assert process.poll() is None, output.read_text()
        finally:
            process.kill()


@contextmanager
def running_proxy(folder: Path, port: int, *command: str) -> Iterator[None]:
    """Run a proxy until the end of the body, which begins when it listens on ``port``."""
    with running_program(folder, *command) as output:
        try:
            wait_for(lambda: _accepts(port))
        except TimeoutError:
            raise AssertionError(output.read_text()) from None
        yield


def proxy_port() -> int:
    """Return a port for a proxy."""
    return free_port()


def _accepts(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def post(port: int, body: str, source: str, path: str = "/v1/payload") -> int:
    """Post a JSON document from the address ``source``; return the status of the answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30, source_address=(source, 0))
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        return connection.getresponse().status
    finally:
        connection.close()
