"""The peers other than payloadd: programs in this folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from tests.bench.peers.peer import Peer, launched, listening_socket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.bench.peers.peer import Running
    from tests.bench.sink import Sink

_ENVIRON: Final = {"MAX_WORKERS": "64", "MAX_QUEUE": "10000"}
_IN_MEMORY: Final = "in memory"

_HERE: Final = Path(__file__).parent
_GO_SOURCE: Final = _HERE / "go_workers" / "main.go"
_GOPATH: Final = Path("/usr/share/gocode")
_SDK: Final = _GOPATH / "src/github.com/aws/aws-sdk-go"
_GO_PACKAGES: Final = "golang-go golang-github-aws-aws-sdk-go-dev"


def _peer(
    name: str, command: Callable[[Path], Awaitable[list[str]]], missing: Callable[[], str | None]
) -> Peer:
    """Return a peer that runs the program of ``command``, in its own folder."""

    @asynccontextmanager
    async def start(folder: Path, store: Sink, **settings: str) -> AsyncIterator[Running]:
        program = await command(folder)
        with listening_socket() as listener:
            env = {**_ENVIRON, **store.environ, **settings}
            async with launched(program, listener, folder, env) as running:
                # If this process kept the socket open, clients of an ended peer would wait for
                # ever.
                listener.close()
                yield running

    return Peer(name, _IN_MEMORY, batched=False, start=start, missing=missing)


async def _build_go(folder: Path) -> list[str]:
    """Build the Go program, from Debian's packages alone; Go's cache makes it fast."""
    program = folder / "go_workers"
    env = {**os.environ, "GO111MODULE": "off", "GOPATH": str(_GOPATH), "GOFLAGS": ""}
    command = ["go", "build", "-o", str(program), str(_GO_SOURCE)]
    await trio.run_process(command, stdin=b"", stdout=subprocess.DEVNULL, env=env)
    return [str(program)]


def _missing_go() -> str | None:
    if shutil.which("go") and _SDK.is_dir():
        return None
    return f"go with aws-sdk-go not found; on Debian: apt-get install {_GO_PACKAGES}"


def _python(file: str) -> Callable[[Path], Awaitable[list[str]]]:
    async def command(_: Path) -> list[str]:
        # By its path: as a module it would also load this package, which takes memory.
        return [sys.executable, str(_HERE / file)]

    return command


def _missing_packages(*names: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        absent = [name for name in names if find_spec(name) is None]
        if not absent:
            return None
        return f"{', '.join(absent)} not found; pip install -e '.[bench]'"

    return missing


GO: Final = _peer("Go (net/http, aws-sdk-go)", _build_go, _missing_go)
FASTAPI: Final = _peer(
    "FastAPI, uvicorn, aiobotocore",
    _python("fastapi_app.py"),
    _missing_packages("fastapi", "uvicorn", "uvloop", "aiobotocore"),
)
STRAIGHT: Final = _peer(
    "the straight build (Quart, httpx, botocore)", _python("straight.py"), lambda: None
)
