"""The daemon as a process: started on kernel ports, listened to, signalled, ended by its id."""

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
"""The package and the tests of this checkout, whatever checkout is installed."""
START_WITHIN: Final = 30.0
END_WITHIN: Final = 60.0


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """Return a clean environment for the daemon: kernel ports, JSON log, home in ``folder``.

    Nothing of the caller's environment reaches it but PATH and what coverage needs to
    measure it; AWS's own files and the metadata service of a cloud machine are out of reach.
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
    """Run ``payloadd ARGUMENTS``, behind ``prefix``, to its end; returns status and outputs."""
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
    """A daemon that runs. ``log`` and ``output`` grow while it does."""

    process: trio.Process
    folder: Path
    log: list[dict[str, Any]] = field(default_factory=list)
    noise: list[str] = field(default_factory=list)
    """Lines it wrote that are no JSON."""
    output: bytearray = field(default_factory=bytearray)
    """Everything it wrote, as it wrote it."""
    ended: bool = False
    """Whether it has closed its outputs, which it does when it ends."""
    _news: trio.Event = field(default_factory=trio.Event)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def url(self) -> str:
        """Where it takes POSTs: ``http://127.0.0.1:PORT``."""
        return "http://" + str(self.event("listening")["public"][0])

    @property
    def admin_url(self) -> str:
        """Where its status, metrics and health live."""
        return "http://" + str(self.event("listening")["admin"])

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return every line of the log so far that has this event."""
        return [line for line in self.log if line.get("event") == name]

    def event(self, name: str) -> dict[str, Any]:
        """Return the first line of the log that has this event; AssertionError without one."""
        found = self.events(name)
        assert found, f"no event {name!r} in the log:\n{self.output.decode()}"
        return found[0]

    async def wait_for_event(self, name: str, within: float = END_WITHIN) -> dict[str, Any]:
        """Wait until the log has this event, and return its first line."""
        with trio.move_on_after(within):
            while not self.events(name) and not self.ended:
                await self._news.wait()
        return self.event(name)

    async def wait_until_stored(self, count: int, within: float = END_WITHIN) -> None:
        """Wait until the daemon says that the store has confirmed ``count`` payloads."""
        with trio.fail_after(within):
            # Its metrics can only be asked for.
            while (await self.metrics())["payloadd_payloads_stored_total"] < count:  # noqa: ASYNC110
                await trio.sleep(0.1)

    async def metrics(self) -> dict[str, float]:
        """Return what ``/metrics`` says now; labels are part of the name, as in the text."""
        async with http_client() as client:
            answer = await client.get(f"{self.admin_url}/metrics")
        values: dict[str, float] = {}
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                labels = ",".join(f'{name}="{text}"' for name, text in sample.labels.items())
                values[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return values

    async def ready(self) -> httpx.Response:
        """Return the answer of ``/readyz``."""
        async with http_client() as client:
            return await client.get(f"{self.admin_url}/readyz")

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    async def wait(self, within: float = END_WITHIN) -> int:
        """Wait for its end and return the exit status; its whole log is there afterwards."""
        with trio.fail_after(within):
            status = await self.process.wait()
            while not self.ended:
                await self._news.wait()
        return status

    async def drained(self, within: float = END_WITHIN) -> dict[str, Any]:
        """Wait for its end and return the line that closes its log, event ``drained``."""
        await self.wait(within)
        assert self.log, self.output.decode()
        assert self.log[-1]["event"] == "drained", self.output.decode()
        return self.log[-1]

    def peak_rss(self) -> int:
        """Return the most bytes of memory it has had resident."""
        return proc.peak_rss(self.pid)

    async def listen(self) -> None:
        """Read what it writes until it closes its outputs."""
        assert self.process.stdout is not None
        rest = b""
        async for chunk in self.process.stdout:
            self.output += chunk
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._take(line.decode())
            self._tell()
        self.ended = True
        self._tell()

    def _take(self, line: str) -> None:
        try:
            self.log.append(json.loads(line))
        except ValueError:
            self.noise.append(line)

    def _tell(self) -> None:
        """Wake everybody who waits for the log."""
        self._news.set()
        self._news = trio.Event()


@asynccontextmanager
async def started(
    folder: Path, env: Mapping[str, str] | None = None, command: Sequence[str] = ()
) -> AsyncIterator[Daemon]:
    """Start the daemon and give it back at once, before it listens; it is killed at the end."""
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
            nursery.start_soon(daemon.listen)
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
    """Start the daemon in ``folder`` and give it back once it listens; killed at the end."""
    async with started(folder, env) as daemon:
        await daemon.wait_for_event("listening", START_WITHIN)
        yield daemon
