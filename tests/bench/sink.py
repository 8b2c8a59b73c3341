"""The store of the benchmark: nginx, which answers every PUT with 200 and keeps nothing."""

from __future__ import annotations

import re
import subprocess
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from tests.support.loopback import free_port, http_client
from tests.support.tools import find_tool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_START_WITHIN: Final = 15.0

# One process in the foreground; the body of a PUT is read and thrown away by nginx itself,
# because `return` does not ask for it.
_CONFIG: Final = """\
daemon off;
master_process off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
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
    location = /nginx-status {{ stub_status; }}
    location / {{ return 200; }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Sink:
    """A running nginx."""

    url: str

    @property
    def environ(self) -> dict[str, str]:
        """The variables that point the daemon, and any AWS SDK, at it."""
        return {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench-secret",
        }

    async def requests(self) -> int:
        """Return how many requests it has answered, this one included."""
        async with http_client() as client:
            text = (await client.get(f"{self.url}/nginx-status")).text
        counts = re.search(r"(\d+) (\d+) (\d+)", text)
        assert counts is not None, text
        return int(counts[3])


@asynccontextmanager
async def sink(folder: Path) -> AsyncIterator[Sink]:
    """Run nginx with everything it writes in ``folder``; it answers when the block is entered."""
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(folder=folder, port=port))
    process = await trio.lowlevel.open_process(
        [find_tool("nginx"), "-e", "stderr", "-p", str(folder), "-c", str(config)],
        stdin=subprocess.DEVNULL,
    )
    try:
        await _until_it_listens(process, port)
        yield Sink(f"http://127.0.0.1:{port}")
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()


async def _until_it_listens(process: trio.Process, port: int) -> None:
    """Return once the port takes a connection."""
    with trio.fail_after(_START_WITHIN):
        while True:
            assert process.poll() is None, "nginx ended, see its words above"
            try:
                stream = await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                await trio.sleep(0.05)  # it tells nobody that it is ready
            else:
                await stream.aclose()
                return
