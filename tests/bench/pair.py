"""Compare two processes on one socket, as with systemd's ``Sockets=``, with one process.

Each process is limited to a part of a core (see ``share.py``): so the generator and the store have
more than a core left, and a single process has no more CPU than each of two.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

import trio

from tests.bench.compare import WORKS
from tests.bench.load import Drive, run_wrk
from tests.bench.measure import settled
from tests.bench.peers.payloadd import BATCHES, SETTINGS
from tests.bench.peers.peer import launched, listening_socket, post_once
from tests.bench.report import Section
from tests.bench.share import cpu_shares
from tests.bench.sink import sink
from tests.support import proc
from tests.support.daemon import START_WITHIN

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from tests.bench.peers.peer import Launched

_CONNECTIONS: Final = 128
"""The same number for one and for two processes.

Half of them have to be enough to share commits well; otherwise the number of connections would be
measured.
"""
_CORES: Final = 0.4
# sd_listen_fds(3): sockets start at descriptor 3, and $LISTEN_PID is the id of the process that
# they are for, which only the process itself knows.
_LIKE_SYSTEMD: Final = """
import os, sys
os.dup2(int(os.environ["LISTEN_FD"]), 3)
os.environ |= {"LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
os.execv(sys.executable, [sys.executable, "-m", "payloadd", "serve"])
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """Results of one or two processes."""

    processes: int
    stored: int
    seconds: float
    """From the first POST to the last stored payload."""
    cpu_seconds: list[float]
    """CPU time of each process."""
    others_cores: float
    """Cores that the generator and the store used during the load."""

    @property
    def rate(self) -> float:
        """Payloads per second."""
        return self.stored / self.seconds

    @property
    def cpu_us(self) -> float:
        """CPU microseconds per payload, of all processes."""
        return sum(self.cpu_seconds) / self.stored * 1e6


async def pair(seconds: int, rounds: int, report: Callable[[str], object]) -> Section:
    """Measure one and two processes, ``rounds`` times. Raises NoSharesError."""
    ones: list[Ran] = []
    twos: list[Ran] = []
    for number in range(1, rounds + 1):
        for count, runs in ((1, ones), (2, twos)):
            with tempfile.TemporaryDirectory(prefix="payloadd-bench-") as folder:
                runs.append(await _run(count, seconds, Path(folder)))
            report(f"{count} on one socket, round {number}: {runs[-1].rate:.0f} payloads a second")
    gain = median(two.rate / one.rate for one, two in zip(ones, twos, strict=True))
    cpu = [median(ran.cpu_us for ran in runs) for runs in (ones, twos)]
    return Section(
        "Two processes on one socket",
        f"Each process is held to {_CORES} of a core by a control group, so the generator and"
        " the store do not take CPU time from it; one payload of 200 bytes a POST, batches of"
        f" 1,000; {_CONNECTIONS} connections, accepted by whoever is free. Medians of {rounds}:"
        f" payloads a second of two against one {gain:.2f}, CPU a payload {cpu[0]:.1f} µs of one"
        f" and {cpu[1]:.1f} µs of two.",
        [_row(ran) for runs in (ones, twos) for ran in runs],
        [asdict(ran) for runs in (ones, twos) for ran in runs],
    )


async def _run(count: int, seconds: int, folder: Path) -> Ran:
    work = WORKS["single"]
    async with AsyncExitStack() as stack:
        groups = stack.enter_context(cpu_shares(count, _CORES))
        store = await stack.enter_async_context(sink(folder, work.payload_bytes))
        listener = stack.enter_context(listening_socket())
        daemons = []
        for index in range(count):
            home = folder / str(index)
            home.mkdir()
            daemons.append(await stack.enter_async_context(_daemon(listener, home, store.environ)))
        for daemon, group in zip(daemons, groups, strict=True):
            await _until_it_listens(daemon)
            (group / "cgroup.procs").write_text(str(daemon.pid))
        await post_once(daemons[0].url, work.body())
        seen, _ = await settled(store, 1)
        before = [proc.cpu_seconds(daemon.pid) for daemon in daemons]
        others = proc.cpu_seconds(store.pid)
        start = trio.current_time()
        load = await run_wrk(daemons[0].url, work, Drive(_CONNECTIONS, seconds), folder)
        stored, at = await settled(store, seen + load.answers - load.refused)
        cpu = [proc.cpu_seconds(daemon.pid) for daemon in daemons]
        return Ran(
            processes=count,
            stored=stored - seen,
            seconds=at - start,
            cpu_seconds=[after - first for after, first in zip(cpu, before, strict=True)],
            others_cores=(load.cpu_seconds + proc.cpu_seconds(store.pid) - others) / load.seconds,
        )


def _daemon(
    listener: socket.socket, folder: Path, store: dict[str, str]
) -> AbstractAsyncContextManager[Launched]:
    command = [sys.executable, "-c", _LIKE_SYSTEMD]
    env = {**SETTINGS, **BATCHES, **store, "ADMIN_BIND": "127.0.0.1:0", "LOG_FORMAT": "json"}
    return launched(command, listener, folder, env)


async def _until_it_listens(daemon: Launched) -> None:
    with trio.fail_after(START_WITHIN):
        while '"listening"' not in daemon.words():
            assert daemon.process.poll() is None, daemon.words()
            await trio.sleep(0.05)  # its log is a file, which can only be polled


def _row(ran: Ran) -> dict[str, str]:
    return {
        "processes": str(ran.processes),
        "payloads a second": f"{ran.rate:.0f}",
        "CPU µs a payload": f"{ran.cpu_us:.1f}",
        "CPU seconds of each": " + ".join(f"{seconds:.2f}" for seconds in ran.cpu_seconds),
        "cores of the rest": f"{ran.others_cores:.2f}",
    }
