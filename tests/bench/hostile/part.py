"""Run the daemon under each kind of hostile clients, and measure honest clients."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio
import trustme

from tests.bench.hostile.kinds import KINDS
from tests.bench.hostile.outcome import (
    WATCHDOG,
    WITHOUT_SLOT,
    Outcome,
    Times,
    count_disk_errors,
    latencies,
    longest_gap,
    percentile,
)
from tests.bench.peers.payloadd import SETTINGS
from tests.bench.report import Section
from tests.bench.sink import sink
from tests.support import proc
from tests.support.daemon import ROOT, Daemon, running_daemon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

QUIET: Final = 2.0
AFTER: Final = 10.0
_LAST_ANSWER: Final = 75.0
"""Seconds to wait for the last answer; an honest client gives up after 60."""
_PREPARE_WITHIN: Final = 60.0

_SLOTS: Final = {"MAX_CONNECTIONS": "1024"}
"""Fewer than the connections of the kinds that exceed it."""
_BATCHES: Final = {
    "one payload": {"BATCH_MAX_PAYLOADS": "1"},
    "10,000 in 1 s": {"BATCH_MAX_PAYLOADS": "10000", "BATCH_LINGER": "1s"},
}


async def hostile(names: Sequence[str], seconds: float, report: Callable[[str], object]) -> Section:
    """Measure each kind of hostile clients in turn, each with a new daemon."""
    outcomes = []
    for name in names or KINDS:
        for batches in _BATCHES:
            if batches == "one payload" or KINDS[name].accepted:
                outcomes.append(await measure(name, batches, seconds))
                report(" | ".join(outcomes[-1].row().values()))
    kinds = ", ".join(f"{name}: {KINDS[name].about}" for name in names or KINDS)
    return Section(
        "Hostile clients",
        f"Six honest clients and two that connect for each POST send a payload every 20 to 50 ms"
        f" while hostile ones attack for {seconds:g} s, 64 of them unless stated otherwise,"
        f" with the worst request of their kind, again as fast as it is answered. Goals: p99 at"
        f" most 50 ms, no wait above 250 ms, all honest POSTs accepted, a sign of life every"
        f" {WATCHDOG:g} s (the daemon gives one every {WATCHDOG / 4:g} s), resident memory at"
        f" most MAX_REQUEST_BYTES + MAX_QUEUE_BYTES + 150 MiB (470 MiB), and below 150 MiB"
        f" {AFTER:g} s after. With more connections than slots: no wait above"
        f" {WITHOUT_SLOT:g} s. The kinds: {kinds}.",
        [outcome.row() for outcome in outcomes],
        [asdict(outcome) for outcome in outcomes],
    )


async def measure(
    name: str, batches: str, seconds: float, quiet: float | None = None, after: float | None = None
) -> Outcome:
    """Measure a new daemon under one kind of hostile clients for ``seconds`` seconds.

    ``quiet`` and ``after`` are the seconds before and after the attack, QUIET and AFTER by default.
    """
    pauses = (QUIET if quiet is None else quiet, AFTER if after is None else after)
    with tempfile.TemporaryDirectory(prefix="payloadd-bench-") as text:
        folder = Path(text)
        async with sink(folder, 1) as store, _watchdog_times(folder) as times:
            env = {**SETTINGS, **_SLOTS, **store.environ, **times.environ, **_BATCHES[batches]}
            if KINDS[name].tls:
                env |= _certificate(folder)
            async with running_daemon(folder, env) as daemon:
                return await _attack(daemon, times.beats, name, batches, seconds, pauses)


def _certificate(folder: Path) -> dict[str, str]:
    """Write a certificate; returns the settings with its paths."""
    made = trustme.CA().issue_cert("127.0.0.1", key_type=trustme.KeyType.RSA)
    made.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    made.private_key_pem.write_to_path(folder / "key.pem")
    return {"TLS_CERT": str(folder / "cert.pem"), "TLS_KEY": str(folder / "key.pem")}


async def _attack(
    daemon: Daemon,
    beats: list[float],
    name: str,
    batches: str,
    seconds: float,
    pauses: tuple[float, float],
) -> Outcome:
    port = daemon.url.rpartition(":")[2]
    async with (
        _child("load", name, port, str(seconds)) as load,
        _child("honest", port, *(["tls"] if KINDS[name].tls else [])) as honest,
    ):
        await load.line(_PREPARE_WITHIN)
        await trio.sleep(pauses[0])
        cpu = proc.cpu_seconds(daemon.pid)
        begin = time.monotonic()
        await load.write("go\n")
        done = json.loads(await load.line(seconds + _LAST_ANSWER))
        await load.end()
        end = time.monotonic()
        cpu = proc.cpu_seconds(daemon.pid) - cpu
        await trio.sleep(pauses[1])
        ended = daemon.process.poll() is not None
        peak, after = (0, 0) if ended else _memory(daemon.pid)
        times = Times(begin, end, time.monotonic())
        await honest.end()
        seen = json.loads(await honest.line(_LAST_ANSWER))
    samples = [tuple(sample) for sample in seen["samples"]]
    beside, waits, longest = latencies(samples, times)
    quiet = sorted(wait for sent, wait, _ in samples if sent + wait <= begin)
    answers = Counter(status for _, _, status in beside)
    return Outcome(
        kind=name,
        batches=batches,
        honest=dict(answers),
        p50=percentile(waits, 0.5),
        p99=percentile(waits, 0.99),
        longest=longest,
        quiet_p99=percentile(quiet, 0.99),
        watchdog_gap=longest_gap(beats, times),
        peak_rss=peak,
        rss_after=after,
        cpu_seconds=cpu,
        load_cpu_seconds=done["cpu_seconds"],
        honest_cpu_seconds=seen["cpu_seconds"],
        tally=done["tally"],
        disk_errors=count_disk_errors(done["tally"], Counter(status for _, _, status in samples)),
        errors=dict(Counter(_errors(daemon))),
        ended=ended,
        more_than_slots=KINDS[name].more_than_slots,
    )


def _memory(pid: int) -> tuple[int, int]:
    """Return the largest and the current resident memory of a process tree, in bytes."""
    found = []
    for process in proc.tree(pid):
        # A decoder process may end meanwhile; without the daemon there would be no figures at all.
        with suppress(*(() if process == pid else (LookupError, OSError))):
            found.append((proc.peak_rss(process), proc.rss(process)))
    return sum(peak for peak, _ in found), sum(now for _, now in found)


def _errors(daemon: Daemon) -> list[str]:
    return [str(line.get("event")) for line in daemon.log if line.get("level") == "error"]


# --- WATCHDOG=1 of the daemon ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _WatchdogTimes:
    environ: dict[str, str]
    beats: list[float]
    """The time of each WATCHDOG=1, on the clock of ``time.monotonic``."""


@asynccontextmanager
async def _watchdog_times(folder: Path) -> AsyncIterator[_WatchdogTimes]:
    """Receive the daemon's notifications as systemd does (sd_watchdog_enabled(3))."""
    path = folder / "notify"
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        await sock.bind(str(path))
        environ = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": str(round(WATCHDOG * 1e6))}
        times = _WatchdogTimes(environ, [])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_listen, sock, times.beats)
            yield times
            nursery.cancel_scope.cancel()


async def _listen(sock: trio.socket.SocketType, beats: list[float]) -> None:
    while True:
        if b"WATCHDOG=1" in await sock.recv(4096):
            beats.append(time.monotonic())


# --- processes of the clients ------------------------------------------------------------------


class _Child:
    """A process with clients, controlled by lines on its standard input and output."""

    def __init__(self, process: trio.Process) -> None:
        self._process = process
        self._read = bytearray()

    async def write(self, text: str) -> None:
        """Write to its standard input."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(text.encode())

    async def end(self) -> None:
        """Close its standard input."""
        assert self._process.stdin is not None
        await self._process.stdin.aclose()

    async def line(self, within: float) -> str:
        """Return the next line of its output, or the rest if it has ended."""
        assert self._process.stdout is not None
        with trio.fail_after(within):
            while b"\n" not in self._read:
                more: Any = await self._process.stdout.receive_some()
                if not more:
                    break
                self._read += more
        line, _, self._read[:] = self._read.partition(b"\n")
        return line.decode()


@asynccontextmanager
async def _child(module: str, *arguments: str) -> AsyncIterator[_Child]:
    """Run a module of this package from this checkout; kill it after the body."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", f"tests.bench.hostile.{module}", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        # Coverage would slow down the clients, and measure nothing: they import no payloadd.
        env={name: text for name, text in os.environ.items() if not name.startswith("COVERAGE_")},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield _Child(process)
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
            await process.stdin.aclose()
            await process.stdout.aclose()
