"""The daemon as a process: started on ports of the kernel's choice, read, signalled, ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio
from prometheus_client.parser import text_string_to_metric_families

from tests.support import proc
from tests.support.loopback import http_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    import httpx

ROOT: Final = Path(__file__).resolve().parents[2]
PYTHONPATH: Final = os.pathsep.join([str(ROOT / "daemon"), str(ROOT)])
"""The package and the tests of this checkout, even if another checkout is installed."""
START_WITHIN: Final = 60.0
END_WITHIN: Final = 120.0


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """Return an environment for the daemon: free ports, JSON log, home in ``folder``.

    Of the caller's environment it contains only PATH and the variables of coverage. The daemon
    finds neither AWS's configuration files nor the metadata service of a cloud machine.
    """
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": PYTHONPATH,
        "HOME": str(folder),
        "AWS_EC2_METADATA_DISABLED": "true",
        "BIND": "127.0.0.1:0",
        "ADMIN_BIND": "127.0.0.1:0",
        "LOG_FORMAT": "json",
        **{name: text for name, text in os.environ.items() if name.startswith("COVERAGE_")},
        **settings,
    }


async def run_command(
    *arguments: str,
    folder: Path,
    env: Mapping[str, str] | None = None,
    within: float = 60.0,
    prefix: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run ``PREFIX payloadd ARGUMENTS`` to its end; returns status and outputs."""
    with trio.fail_after(within):
        done = await trio.run_process(
            [*prefix, sys.executable, "-m", "payloadd", *arguments],
            check=False,
            stdin=b"",
            capture_stdout=True,
            capture_stderr=True,
            cwd=folder,
            env=environment(folder, **(env or {})),
        )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


@dataclass
class Daemon:
    """A running daemon; ``log`` and ``output`` grow while it runs."""

    process: trio.Process
    folder: Path
    log: list[dict[str, Any]] = field(default_factory=list)
    other_lines: list[str] = field(default_factory=list)
    """Lines of its output that are not JSON."""
    output: bytearray = field(default_factory=bytearray)
    """All bytes of its output."""
    ended: bool = False
    """Whether it has closed its output, as it does when it ends."""
    _changed: trio.Event = field(default_factory=trio.Event)

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self.process.pid

    @property
    def url(self) -> str:
        """The URL of the public address: ``http://127.0.0.1:PORT``."""
        return "http://" + str(self.event("listening")["public"][0])

    @property
    def admin_url(self) -> str:
        """The URL of the admin address."""
        return "http://" + str(self.event("listening")["admin"])

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the lines of the log that have this event."""
        return [line for line in self.log if line.get("event") == name]

    def event(self, name: str) -> dict[str, Any]:
        """Return the first line of the log with this event; AssertionError without one."""
        found = self.events(name)
        assert found, f"no event {name!r} in the log:\n{self.output.decode()}"
        return found[0]

    async def wait_for_event(self, name: str, within: float = END_WITHIN) -> dict[str, Any]:
        """Wait until the log has a line with this event; returns the first one."""
        with trio.move_on_after(within):
            while not self.events(name) and not self.ended:
                await self._changed.wait()
        return self.event(name)

    async def wait_until_stored(self, count: int, within: float = END_WITHIN) -> None:
        """Wait until the metrics count ``count`` stored payloads."""
        with trio.fail_after(within):
            # Metrics can only be polled.
            while await self.counted("payloads_stored") < count:  # noqa: ASYNC110
                await trio.sleep(0.1)

    async def counted(self, counter: str) -> float:
        """Return the sum of a counter of payloads over all streams."""
        name = f"payloadd_{counter}_total"
        found = await self.metrics()
        return sum(value for one, value in found.items() if one.partition("{")[0] == name)

    async def metrics(self) -> dict[str, float]:
        """Return the values of ``/metrics`` by name; a name includes its labels."""
        async with http_client() as client:
            answer = await client.get(f"{self.admin_url}/metrics")
        values: dict[str, float] = {}
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                labels = ",".join(f'{name}="{text}"' for name, text in sample.labels.items())
                values[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return values

    async def ready(self) -> httpx.Response:
        """Return the response of ``/readyz``."""
        async with http_client() as client:
            return await client.get(f"{self.admin_url}/readyz")

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        self.process.send_signal(number)

    async def wait(self, within: float = END_WITHIN) -> int:
        """Wait until the daemon ends, and until its output is read; returns the exit status."""
        with trio.fail_after(within):
            status = await self.process.wait()
            while not self.ended:
                await self._changed.wait()
        return status

    async def drained(self, within: float = END_WITHIN) -> dict[str, Any]:
        """Wait until the daemon ends; returns the last line of its log, event ``drained``."""
        await self.wait(within)
        assert self.log, self.output.decode()
        assert self.log[-1]["event"] == "drained", self.output.decode()
        return self.log[-1]

    def peak_rss(self) -> int:
        """Return the largest resident memory of the process so far, in bytes."""
        return proc.peak_rss(self.pid)

    async def read_output(self) -> None:
        """Read the output until the daemon closes it."""
        assert self.process.stdout is not None
        rest = b""
        async for chunk in self.process.stdout:
            self.output += chunk
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._add_line(line.decode())
            self._notify()
        self.ended = True
        self._notify()

    def _add_line(self, line: str) -> None:
        try:
            self.log.append(json.loads(line))
        except ValueError:
            self.other_lines.append(line)

    def _notify(self) -> None:
        """Wake the tasks that wait for a line of the log."""
        self._changed.set()
        self._changed = trio.Event()


@asynccontextmanager
async def started(
    folder: Path, env: Mapping[str, str] | None = None, command: Sequence[str] = ()
) -> AsyncIterator[Daemon]:
    """Start the daemon and yield it before it listens; kill it after the body."""
    process = await trio.lowlevel.open_process(
        [*(command or (sys.executable, "-m", "payloadd")), "serve"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env=environment(folder, **(env or {})),
    )
    daemon = Daemon(process, folder)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon.read_output)
            yield daemon
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            if process.stdout is not None:
                await process.stdout.aclose()


@asynccontextmanager
async def running_daemon(
    folder: Path, env: Mapping[str, str] | None = None
) -> AsyncIterator[Daemon]:
    """Start the daemon in ``folder`` and yield it when it listens; kill it after the body."""
    async with started(folder, env) as daemon:
        await daemon.wait_for_event("listening", START_WITHIN)
        yield daemon
