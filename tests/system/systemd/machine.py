"""A machine with systemd: Debian in a container that shares the network of the host.

``systemd-nspawn`` boots it. Its files are on an overlay, which is deleted afterwards. Commands run
in it with nsenter(1), as root.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator

_BOOT_SECONDS: Final = 120.0
_COMMAND_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Machine:
    """A booted container."""

    root: Path
    """The root of its files on the host, without its /run and /tmp."""
    leader: int
    """The process id on the host of its process 1."""

    async def run(self, *command: str, check: bool = True, within: float = _COMMAND_SECONDS) -> str:
        """Run a command in the container; returns both outputs, AssertionError if it fails."""
        status, output = await self.attempt(*command, within=within)
        assert status == 0 or not check, f"{command}: exit {status}\n{output}"
        return output

    async def attempt(self, *command: str, within: float = _COMMAND_SECONDS) -> tuple[int, str]:
        """Run a command in the container; returns its exit status and both outputs."""
        with trio.fail_after(within):
            done = await trio.run_process(
                ["nsenter", "--target", str(self.leader), *_NAMESPACES, "--", *command],
                check=False,
                capture_stdout=True,
                stderr=subprocess.STDOUT,
                env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "HOME": "/root"},
            )
        return done.returncode, done.stdout.decode(errors="replace")

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file in the container."""
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(mode)


_NAMESPACES: Final = ("--mount", "--uts", "--ipc", "--pid", "--net", "--root", "--wd")


@contextmanager
def booted(tree: Path, folder: Path) -> Iterator[Machine]:
    """Boot a container from ``tree`` with its changes in ``folder``; kill it after the body."""
    with _layer(tree, folder) as root, _process(root, folder) as notify:
        try:
            leader = _leader(notify)
        except TimeoutError:
            raise AssertionError((folder / "console").read_text(errors="replace")) from None
        # systemd keeps sending notifications, and would block once the buffer is full.
        notify.close()
        yield Machine(root, leader)


@contextmanager
def _process(root: Path, folder: Path) -> Iterator[socket.socket]:
    """Start the container; yields the socket to which it sends notifications."""
    address = folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(address))
        notify.settimeout(_BOOT_SECONDS)
        with (folder / "console").open("wb") as console:
            process = subprocess.Popen(
                _command(root),
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={**os.environ, "NOTIFY_SOCKET": str(address)},
            )
        try:
            yield notify
        finally:
            notify.close()
            for child in _children(process.pid):
                os.kill(child, signal.SIGKILL)
            process.wait()


def _command(root: Path) -> list[str]:
    return [
        # The container ends with the tests, even if they are killed.
        *("setpriv", "--pdeathsig", "TERM"),
        *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit"),
        *("--notify-ready=yes", "--console=pipe", "--resolv-conf=off", "--timezone=off"),
        *("--directory", str(root), "--machine", f"payloadd-{os.getpid()}"),
    ]


def _leader(notify: socket.socket) -> int:
    """Wait until the container has booted; returns the host's id of its process 1."""
    leader = 0
    while True:
        for line in notify.recv(4096).decode().splitlines():
            name, _, value = line.partition("=")
            if name == "X_NSPAWN_LEADER_PID":
                leader = int(value)
            elif name == "READY":
                return leader


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


@contextmanager
def _layer(tree: Path, folder: Path) -> Iterator[Path]:
    """Mount an overlay, which can be written to while ``tree`` is not changed."""
    upper, work, root = folder / "upper", folder / "work", folder / "root"
    for one in (upper, work, root):
        one.mkdir()
    options = f"lowerdir={tree},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", root], check=True)
    try:
        yield root
    finally:
        subprocess.run(["umount", "--lazy", root], check=True)
