"""Processes of one server of the tests: started in a folder, watched, and killed."""

from __future__ import annotations

import socket
import subprocess
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_COMMAND_SECONDS: Final = 90.0
_LOG_BYTES: Final = 4000


class Processes:
    """The processes of a server; the output of all of them is in one file."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.log = folder / "processes.log"
        self._folder = folder
        self._environ = dict(environ)
        self._running: list[subprocess.Popen[bytes]] = []

    def run(self, *command: str) -> None:
        """Run a command to its end. Raises AssertionError, with its output, if it fails."""
        done = subprocess.run(
            command,
            check=False,
            cwd=self._folder,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_COMMAND_SECONDS,
        )
        output = done.stdout.decode(errors="replace")
        assert done.returncode == 0, f"{command}: {output}{self.end_of_log()}"

    def start(self, *command: str) -> None:
        """Start a process, and return at once."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self._folder,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._running.append(process)

    def failed(self) -> bool:
        """Return whether a process has ended by itself."""
        return any(process.poll() is not None for process in self._running)

    def end_of_log(self) -> str:
        """Return the last lines that the processes have written."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return text[-_LOG_BYTES:]

    def stop(self) -> None:
        """Kill the processes, the last one first: the data of a test's server is not needed."""
        while self._running:
            process = self._running.pop()
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """Return different ports of 127.0.0.1 that were free a moment ago."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
