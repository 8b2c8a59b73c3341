"""A page in a real browser posts from another origin."""

from __future__ import annotations

import json
import subprocess
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.support.daemon import running_daemon
from tests.support.tools import find_tool, need_tools

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.daemon import Daemon

pytestmark = pytest.mark.no_cover

PAGE = """<!doctype html><script>
const url = "URL/v1/payloads", json = {"Content-Type": "application/json"}
const body = (name) => JSON.stringify({payloads: [name]})
async function run() {
  const answer = await fetch(url, {method: "POST", headers: json, body: body("fetch")})
  await fetch(url, {method: "POST", headers: json, body: body("keepalive"), keepalive: true})
  const key = {...json, "Idempotency-Key": "k", "Authorization": "Bearer x"}
  await fetch(url, {method: "PUT", headers: key, body: body("put"), credentials: "include"})
  navigator.sendBeacon(url, body("text"))
  navigator.sendBeacon(url, new Blob([body("blob")], {type: "application/json"}))
  const wrong = await fetch(url, {method: "POST", headers: json, body: "{}"})
  const report = {status: answer.status, accepted: (await answer.json()).accepted,
                  wrong: wrong.status, code: (await wrong.json()).code}
  await fetch("URL/v1/payload", {method: "POST", headers: json, body: JSON.stringify(report)})
}
run()
</script>"""
BROWSER = (
    *(
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
    ),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--remote-debugging-port=0", "--disable-extensions", "--no-default-browser-check"),
)


async def serve_page(page: bytes, stream: trio.SocketStream) -> None:
    """Answer a request with the page, whatever is asked for."""
    async with stream:
        await stream.receive_some(65_536)
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n"
        await stream.send_all(f"{head}Content-Length: {len(page)}\r\n\r\n".encode() + page)


@asynccontextmanager
async def browser_at(page_url: str, folder: Path) -> AsyncIterator[None]:
    """Open a page in Chromium, and end the browser after the body."""
    command = [find_tool("chromium"), *BROWSER, f"--user-data-dir={folder}", page_url]
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, command, check=False, stdin=subprocess.DEVNULL)
        nursery.start_soon(partial(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        yield
        nursery.cancel_scope.cancel()


def stored(daemon: Daemon) -> list[Any]:
    """Return the stored payloads."""
    files = (daemon.folder / "payloadd-data" / "objects").rglob("*.ndjson")
    return [json.loads(line) for path in files for line in path.read_text().splitlines()]


async def test_a_page_of_another_origin_posts(tmp_path: Path) -> None:
    """A browser would keep the payloads of a page, or hide the answers from it."""
    need_tools("chromium")
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    origin = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    env = {"CORS_ORIGINS": origin}
    async with running_daemon(tmp_path, env) as daemon, trio.open_nursery() as nursery:
        page = PAGE.replace("URL", daemon.url).encode()
        nursery.start_soon(trio.serve_listeners, partial(serve_page, page), listeners)
        async with browser_at(origin, tmp_path / "browser"):
            await daemon.wait_until_stored(6)
        nursery.cancel_scope.cancel()
    found = stored(daemon)
    report = {"status": 202, "accepted": 1, "wrong": 422, "code": "NOT_A_COLLECTION"}
    assert report in found
    names = {text for text in found if isinstance(text, str)}
    assert names == {"fetch", "keepalive", "put", "text", "blob"}
