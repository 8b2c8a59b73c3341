"""Measure each form of client on payloadd and on the Go program, in one run."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import trio
import trio.lowlevel
import trustme

from tests.bench.clients.kinds import KINDS, Idle, Kind
from tests.bench.load import Work
from tests.bench.measure import settled
from tests.bench.peers.others import GO
from tests.bench.peers.payloadd import payloadd
from tests.bench.report import MIB, Section
from tests.bench.sink import sink
from tests.support import proc

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from tests.bench.peers.peer import Peer, Running

_SOURCE: Final = Path(__file__).parent / "generator" / "main.go"
_WORK: Final = Work("single", 1, 200)
_MOST_OF_GO: Final = 10_000
"""Payloads for the Go program, which stores one object a payload."""
_WARM_UP: Final = 200
IDLE_CONNECTIONS: Final = 10_000
_SPARE_DESCRIPTORS: Final = 200
_PAUSE_FOR_RSS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of one daemon with one form of client."""

    kind: str
    daemon: str
    answers: int
    refused: int
    broken: int
    seconds: float
    p50: int
    """Microseconds."""
    p99: int
    cpu_seconds: float
    """CPU time of the process tree from the first POST until the last payload is stored."""
    stored: int
    rss: int

    @property
    def cpu_us(self) -> float:
        """CPU microseconds of a stored payload."""
        return self.cpu_seconds * 1e6 / self.stored

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answers / self.seconds


async def clients(
    names: Collection[str],
    connections: int,
    seconds: float,
    rounds: int,
    report: Callable[[str], object],
) -> list[Section]:
    """Measure the kinds ``names``, all without any; returns a table of costs and one of memory."""
    kinds = {name: KINDS[name] for name in names or KINDS}
    results: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="payloadd-bench-") as place:
        folder = Path(place)
        generator = await _build(folder)
        _write_certificate(folder)
        for number in range(1, rounds + 1):
            for name, kind in kinds.items():
                for peer in _peers(kind, folder):
                    run = partial(_measure, name, kind, peer, generator)
                    result = await run(kind.connections or connections, seconds, folder)
                    report(f"{kind.title}, round {number}, {peer.name}: {result.cpu_us:.1f} µs")
                    results.append(result)
        idle = await _idle(folder, report)
    return [_costs(kinds, results, connections), _memory(idle)]


def _peers(kind: Kind, folder: Path) -> list[Peer]:
    tls = {"TLS_CERT": str(folder / "cert.pem"), "TLS_KEY": str(folder / "key.pem")}
    settings = tls if kind.tls else {}
    found = [payloadd("payloadd", batched=True, **settings)]
    if kind.go and GO.missing() is None:
        found.append(replace(GO, name="Go", start=partial(GO.start, **settings)))
    return found


async def _build(folder: Path) -> Path:
    program = folder / "generator"
    env = {**os.environ, "GO111MODULE": "off", "GOFLAGS": ""}
    command = ["go", "build", "-o", str(program), str(_SOURCE)]
    await trio.run_process(command, stdin=b"", stdout=subprocess.DEVNULL, env=env)
    return program


def missing() -> str | None:
    """Return the missing program and the command that installs it, or None."""
    if shutil.which("go"):
        return None
    return "go not found; on Debian: apt-get install golang-go"


def _write_certificate(folder: Path) -> None:
    issued = trustme.CA(key_type=trustme.KeyType.ECDSA).issue_cert(
        "127.0.0.1", key_type=trustme.KeyType.ECDSA
    )
    issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")


async def _measure(
    name: str,
    kind: Kind,
    peer: Peer,
    generator: Path,
    connections: int,
    seconds: float,
    place: Path,
) -> Measured:
    with tempfile.TemporaryDirectory(dir=place) as inner:
        folder = Path(inner)
        async with sink(folder, _WORK.payload_bytes) as store, peer.start(folder, store) as running:
            load = partial(_load, generator, kind, running)
            await load(min(connections, 32), 2.0, _WARM_UP)
            seen, _ = await settled(store, _WARM_UP)
            cpu = proc.cpu_seconds(running.pid)
            found = await load(connections, seconds, None if peer.batched else _MOST_OF_GO)
            answered = found["answers"] - found["refused"]
            rss = proc.rss(running.pid)
            stored, _ = await settled(store, seen + answered)
            return Measured(
                kind=name,
                daemon=peer.name,
                **found,
                cpu_seconds=proc.cpu_seconds(running.pid) - cpu,
                stored=stored - seen,
                rss=rss,
            )


async def _load(
    generator: Path,
    kind: Kind,
    running: Running,
    connections: int,
    seconds: float,
    posts: int | None,
) -> dict[str, int]:
    command = [
        str(generator),
        *("-address", urlsplit(running.url).netloc, "-form", kind.form, "-body", _WORK.body()),
        *("-connections", str(connections), "-seconds", str(seconds), *kind.options),
        *(["-posts", str(posts)] if posts else []),
        *(["-tls"] if kind.tls else []),
    ]
    done = await trio.run_process(command, stdin=b"", capture_stdout=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


async def _idle(place: Path, report: Callable[[str], object]) -> Idle:
    """Open connections that send nothing; returns the memory of the daemon before and after."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    number = min(IDLE_CONNECTIONS, hard - _SPARE_DESCRIPTORS)
    peer = payloadd("payloadd")
    with tempfile.TemporaryDirectory(dir=place) as inner, ExitStack() as stack:
        folder = Path(inner)
        async with sink(folder, 1) as store, peer.start(folder, store) as running:
            before = proc.rss(running.pid)
            port = urlsplit(running.url).port
            for count in range(number):
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                if not count % 100:
                    await trio.lowlevel.checkpoint()
            await trio.sleep(_PAUSE_FOR_RSS)  # the accepts of another process can only be polled
            found = Idle(number, before, proc.rss(running.pid))
    report(f"{number} idle connections: {found.after / MIB:.0f} MiB, {found.bytes_each:.0f} each")
    return found


def _costs(kinds: dict[str, Kind], results: Sequence[Measured], connections: int) -> Section:
    rows = []
    ours = {name: _of(results, name, "payloadd") for name in kinds}
    for name, kind in kinds.items():
        go = _of(results, name, "Go")
        base = ours.get(kind.base, [])
        rows.append(
            {
                "client": kind.title,
                "payloadd, CPU µs a payload": f"{median(one.cpu_us for one in ours[name]):.1f}",
                "least - most": " - ".join(
                    f"{edge(one.cpu_us for one in ours[name]):.1f}" for edge in (min, max)
                ),
                "to kept alive": _ratio(ours[name], base),
                "Go, CPU µs a payload": f"{median(one.cpu_us for one in go):.1f}" if go else "",
                "ratio to Go": _ratio(ours[name], go),
                "answers a second": f"{median(one.rate for one in ours[name]):.0f}",
                "p99 ms": f"{median(one.p99 for one in ours[name]) / 1000:.1f}",
                "not 2xx": str(sum(one.refused + one.broken for one in ours[name])),
            }
        )
    return Section(
        "Clients of many forms",
        f"One payload of 200 bytes a POST, {connections} connections unless the row says another"
        " number; payloadd with batches of 1,000 on disk, Go with one object a payload in memory."
        " CPU of the whole process tree from the first POST until the last payload is stored;"
        " medians of the rounds, and ratios within a round.",
        rows,
        [asdict(one) | {"cpu_us": one.cpu_us} for one in results],
    )


def _of(results: Sequence[Measured], kind: str, daemon: str) -> list[Measured]:
    return [one for one in results if (one.kind, one.daemon) == (kind, daemon)]


def _ratio(rounds: Sequence[Measured], base: Sequence[Measured]) -> str:
    if not base:
        return ""
    return (
        f"{median(one.cpu_us / other.cpu_us for one, other in zip(rounds, base, strict=True)):.2f}"
    )


def _memory(idle: Idle) -> Section:
    return Section(
        "Idle connections",
        "Resident memory of payloadd with connections that have sent nothing, without TLS.",
        [
            {
                "connections": str(idle.connections),
                "MiB before": f"{idle.before / MIB:.0f}",
                "MiB": f"{idle.after / MIB:.0f}",
                "bytes a connection": f"{idle.bytes_each:.0f}",
            }
        ],
        [asdict(idle)],
    )
