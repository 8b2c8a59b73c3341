"""SeaweedFS as a process of the tests: ``weed server`` with its data in a folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.support.processes import free_ports

_PORT_TAKEN: Final = "bind: address already in use"
_STOP_SECONDS: Final = 1.0
"""Seconds until SIGKILL. It waits 15 s for open connections; its files survive a SIGKILL."""


class SeaweedProcess:
    """``weed server``, which can be stopped, started again with its data, and paused."""

    def __init__(self, folder: Path, access_key: str, secret_key: str) -> None:
        self.folder = folder
        self.log = folder / "weed.log"
        names = ("master", "volume", "filer", "s3")
        ports = iter(free_ports(2 * len(names)))
        self.ports = {name: (next(ports), next(ports)) for name in names}
        """Two of each part: for HTTP and for gRPC."""
        self._config = folder / "s3.json"
        self._config.write_text(_identities(access_key, secret_key))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """The URL of its S3 interface."""
        return f"http://127.0.0.1:{self.ports['s3'][0]}"

    @property
    def filer_url(self) -> str:
        """The URL of the filer, which speaks another protocol than S3."""
        return f"http://127.0.0.1:{self.ports['filer'][0]}"

    @property
    def pid(self) -> int:
        """The process's id; it must be running."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start the process and return at once; ``wait_until_ready`` waits for the server."""
        assert self._process is None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(), cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def stop(self) -> None:
        """Stop the process with SIGTERM, after 1 s with SIGKILL. Its data is kept."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def pause(self) -> None:
        """Stop the process with SIGSTOP: connections can be opened and get no response."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Continue the paused process."""
        os.kill(self.pid, signal.SIGCONT)

    def failed(self) -> bool:
        """Return whether the process has ended without ``stop``."""
        return self._process is not None and self._process.poll() is not None

    def lacked_a_port(self) -> bool:
        """Return whether the process has ended because one of its ports was taken.

        While it was stopped, the kernel may have given the port to a client's connection.
        """
        return self.failed() and _PORT_TAKEN in self.end_of_log()

    def end_of_log(self) -> str:
        """Return the last lines that the process has written."""
        return self.log.read_text(errors="replace")[-4000:]

    def _command(self) -> list[str]:
        flags = [f"-{name}.port={http}" for name, (http, _) in self.ports.items()]
        flags += [f"-{name}.port.grpc={grpc}" for name, (_, grpc) in self.ports.items()]
        return [
            str(Path(sys.executable).with_name("weed")),
            "server",
            f"-dir={self.folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-s3",
            f"-s3.config={self._config}",
            "-s3.autoCreateBucket=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            *flags,
            # Each bucket is a collection with its own volumes, several at its first write.
            "-volume.max=2000",
            "-volume.minFreeSpace=1",
            "-master.volumeSizeLimitMB=100",
            "-volume.preStopSeconds=0",
            "-master.electionTimeout=1s",
            "-master.telemetry=false",
        ]


def _identities(access_key: str, secret_key: str) -> str:
    identity = {
        "name": "t",
        "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    return json.dumps({"identities": [identity]})
