"""The store of the benchmark: nginx, which answers every PUT with 200 and stores nothing.

Its answers are those of S3: an ETag, and the checksum of the request.

It counts payloads: its log has the length of each object, and an object consists of whole payloads
of one length, one a line. That costs nginx a few bytes a PUT; a store that reads the bodies would
need more CPU time than some of the daemons. Of compressed objects the metadata says the number.
"""

from __future__ import annotations

import subprocess
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from tests.support.loopback import free_port
from tests.support.tools import find_tool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_START_WITHIN: Final = 15.0

# One process in the foreground; nginx discards the body of a PUT because `return` does not need it.
_CONFIG: Final = """\
daemon off;
master_process off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  log_format put "$request_method $content_length $http_x_amz_meta_payloads";
  access_log {folder}/puts.log put buffer=64k flush=100ms;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_max_body_size 0;
  keepalive_requests 100000000;
  keepalive_timeout 300s;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      add_header ETag '"d41d8cd98f00b204e9800998ecf8427e-1"';
      add_header x-amz-checksum-crc32 $http_x_amz_checksum_crc32;
      return 200;
    }}
  }}
}}
"""


@dataclass
class Sink:
    """A running nginx; ``read`` updates the counts."""

    url: str
    pid: int
    log: Path
    payload_bytes: int | None
    """Bytes of every payload; None where objects are compressed: their metadata is counted."""
    objects: int = 0
    payloads: int = 0
    _offset: int = 0

    @property
    def environ(self) -> dict[str, str]:
        """The variables that make the daemon and every AWS SDK use this store."""
        return {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench-secret",
        }

    def read(self) -> None:
        """Count what nginx has logged since the last time; it writes within 100 ms.

        AssertionError for an object that is not whole payloads.
        """
        with self.log.open("rb") as log:
            log.seek(self._offset)
            text, newline, _ = log.read().rpartition(b"\n")
        self._offset += len(text) + len(newline)
        lines = text.splitlines()
        self.objects += len(lines)
        self.payloads += sum(payloads_in(line, self.payload_bytes) for line in lines)


def payloads_in(line: bytes, payload_bytes: int | None) -> int:
    """Return the number of payloads of the object in a line of the log.

    The last payload of an object may lack its line feed.
    """
    method, length, *metadata = line.split()
    assert method == b"PUT", line
    if payload_bytes is None:
        return int(metadata[0])
    count, rest = divmod(int(length) + 1, payload_bytes + 1)
    assert count > 0, line
    assert rest in (0, 1), f"{line!r}: these are no payloads of {payload_bytes} bytes"
    return count


@asynccontextmanager
async def sink(folder: Path, payload_bytes: int | None) -> AsyncIterator[Sink]:
    """Run nginx with its files in ``folder``; it answers when the body begins."""
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(folder=folder, port=port))
    process = await trio.lowlevel.open_process(
        [find_tool("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(config)],
        stdin=subprocess.DEVNULL,
    )
    try:
        await _until_it_listens(process, port)
        yield Sink(f"http://127.0.0.1:{port}", process.pid, folder / "puts.log", payload_bytes)
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()


async def _until_it_listens(process: trio.Process, port: int) -> None:
    """Wait until the port accepts a connection."""
    with trio.fail_after(_START_WITHIN):
        while True:
            assert process.poll() is None, "nginx ended, see its output above"
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                await trio.sleep(0.05)  # its start can only be polled
            else:
                await stream.aclose()
                return
