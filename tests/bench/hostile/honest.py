"""The process of the honest clients: ``python -m tests.bench.hostile.honest PORT [tls]``.

Each client posts one small payload every 20 to 50 ms and measures the time until its answer. Two of
them open a connection for each POST, which is part of the time. All end at the end of standard
input; then every POST is printed as JSON: when it was sent, on the clock of ``time.monotonic``, its
seconds, and its answer.
"""

from __future__ import annotations

import json
import random
import resource
import socket
import ssl
import sys
import threading
import time
from typing import Final

from tests.bench.hostile.answers import AnswerReader
from tests.bench.hostile.bodies import JSON, post

_KEPT: Final = 6
_NEW: Final = 2
_TIMEOUT: Final = 60.0
_PAUSE: Final = (0.02, 0.05)
_REQUEST: Final = post(b'{"payloads":[{"event":"click","n":1}]}', JSON)

Sample = tuple[float, float, str]


class _Client:
    """One honest client in its own thread; threads share little, so they do not wait for locks."""

    def __init__(self, port: int, tls: ssl.SSLContext | None, *, keeps: bool) -> None:
        self._port = port
        self._tls = tls
        self._keeps = keeps
        self._socket: socket.socket | None = None
        self.samples: list[Sample] = []

    def run(self, stop: threading.Event) -> None:
        """Post until ``stop`` is set."""
        pause = random.Random(id(self))  # noqa: S311 - only has to differ
        while not stop.wait(pause.uniform(*_PAUSE)):
            begin = time.monotonic()
            try:
                status = self._post()
            except TimeoutError:
                status = "no answer"
            except OSError:
                status = "closed"
            self.samples.append((begin, time.monotonic() - begin, status))
            if not self._keeps or status in {"no answer", "closed"}:
                self._close()
        self._close()

    def _post(self) -> str:
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=_TIMEOUT)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                self._socket = self._tls.wrap_socket(self._socket)
        self._socket.sendall(_REQUEST)
        tally: dict[str, int] = {}
        reader = AnswerReader(tally)
        while not reader.feed(data := self._socket.recv(65_536)):
            if not data:
                raise ConnectionResetError
        (status,) = tally
        return status

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _any_certificate() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def main(port: int, *, tls: bool) -> None:
    """Post until standard input ends."""
    stop = threading.Event()
    context = _any_certificate() if tls else None
    clients = [_Client(port, context, keeps=number < _KEPT) for number in range(_KEPT + _NEW)]
    threads = [threading.Thread(target=client.run, args=(stop,)) for client in clients]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    used = resource.getrusage(resource.RUSAGE_SELF)
    samples = [sample for client in clients for sample in client.samples]
    json.dump({"samples": samples, "cpu_seconds": used.ru_utime + used.ru_stime}, sys.stdout)


if __name__ == "__main__":
    main(int(sys.argv[1]), tls="tls" in sys.argv[2:])
