"""The type of peers, and how their processes are started."""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import trio

from tests.support.daemon import PYTHONPATH
from tests.support.loopback import http_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.bench.sink import Sink

PATH: Final = "/v1/payloads"

_ANSWER_WITHIN: Final = 60.0
_BACKLOG: Final = 4096


class Running(Protocol):
    """A running peer."""

    @property
    def pid(self) -> int:
        """The process id of the root of its process tree."""
        ...

    @property
    def url(self) -> str:
        """The URL to post to."""
        ...

    async def accepted(self) -> int | None:
        """Return the number of payloads that it has accepted; None if it does not count them."""
        ...


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer: its name, and how to run it."""

    name: str
    promise: str
    """The promise of an answer."""
    batched: bool
    """Whether an object holds many payloads; otherwise PUTs are the bottleneck."""
    start: Callable[[Path, Sink], AbstractAsyncContextManager[Running]]
    missing: Callable[[], str | None]
    """Return the missing programs and the command that installs them, or None."""


@dataclass(frozen=True, slots=True)
class Launched:
    """A process that gets its listening socket from the benchmark."""

    process: trio.Process
    url: str
    output: Path

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self.process.pid

    async def accepted(self) -> int | None:
        """Return None: it does not count."""
        return None

    def words(self) -> str:
        """Return its output so far."""
        return self.output.read_text(errors="replace")


def listening_socket() -> socket.socket:
    """Return a socket that listens on a port of the kernel's choice on the loopback."""
    return socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)


@asynccontextmanager
async def launched(
    command: Sequence[str], listener: socket.socket, folder: Path, env: Mapping[str, str]
) -> AsyncIterator[Launched]:
    """Start a process with ``listener`` as descriptor ``$LISTEN_FD``; kill it after the body.

    Connections wait in the socket's backlog until the process takes them.
    """
    output = folder / "output.log"
    fd = listener.fileno()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}{PATH}"
    with output.open("wb") as log:
        process = await trio.lowlevel.open_process(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            env={
                "PATH": os.environ.get("PATH", os.defpath),
                "PYTHONPATH": PYTHONPATH,
                "HOME": str(folder),
                "LISTEN_FD": str(fd),
                **env,
            },
            pass_fds=[fd],
        )
    try:
        yield Launched(process, url, output)
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()


async def post_once(url: str, body: str, token: str | None = None) -> None:
    """Post until the first answer, so that modules loaded on demand are loaded.

    Raises httpx.HTTPError if the answer is a refusal, or if the peer does not listen.
    """
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    async with http_client(timeout=_ANSWER_WITHIN) as client:
        answer = await client.post(url, content=body, headers=headers)
        answer.raise_for_status()
