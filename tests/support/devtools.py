"""Chromium, driven by the DevTools protocol (chromedevtools.github.io/devtools-protocol).

async with chromium(folder) as browser:
    await browser.open("http://127.0.0.1:8081/")
    assert await browser.run("document.title") == "payloadd"
"""

from __future__ import annotations

import base64
import json
import subprocess
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Message, Request

from tests.support.loopback import http_client
from tests.support.tools import find_tool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

OPTIONS: Final = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-extensions", "--no-default-browser-check"),
    "--remote-debugging-port=0",
)
_WITHIN: Final = 60.0


class Browser:
    """One page of a running browser."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._protocol = WSConnection(ConnectionType.CLIENT)
        self._results: dict[int, Any] = {}
        self._changed = trio.Event()
        self._text = ""
        self._calls = 0
        self.connected = trio.Event()
        self.complaints: list[str] = []
        """What the page has logged: violations of its policy, exceptions, failed requests."""

    async def connect(self, host: str, target: str) -> None:
        """Begin the WebSocket connection (RFC 6455, section 4)."""
        await self._stream.send_all(self._protocol.send(Request(host=host, target=target)))

    async def receive(self) -> None:
        """Receive results and events until the browser ends."""
        try:
            async for data in self._stream:
                self._protocol.receive_data(bytes(data))
                for event in self._protocol.events():
                    self._take(event)
                self._changed.set()
                self._changed = trio.Event()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the browser has ended, or the test

    async def call(self, method: str, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
        """Call a method of the protocol and return its result."""
        return _result(await self._answer(method, **arguments))

    async def _evaluate(self, expression: str) -> dict[str, Any]:
        return await self._answer(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )

    async def _answer(self, method: str, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
        self._calls += 1
        number = self._calls
        text = json.dumps({"id": number, "method": method, "params": arguments})
        await self._stream.send_all(self._protocol.send(Message(text)))
        with trio.fail_after(_WITHIN):
            while number not in self._results:
                await self._changed.wait()
        answer: dict[str, Any] = self._results.pop(number)
        return answer

    async def open(self, url: str) -> None:
        """Open a page and collect what it logs from then on."""
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)
        await self.wait_for(f"location.href === '{url}' && document.readyState === 'complete'")

    async def run(self, expression: str) -> Any:  # noqa: ANN401 - JSON
        """Return the value of a JavaScript expression; a promise is awaited."""
        return _value(await self._evaluate(expression))

    async def wait_for(self, expression: str, within: float = _WITHIN) -> None:
        """Wait until a JavaScript expression is true.

        While it raises, or while the page reloads itself, it is not.
        """
        guarded = f"(() => {{ try {{ return {expression} }} catch {{ return false }} }})()"
        with trio.move_on_after(within):
            while True:
                answer = await self._evaluate(guarded)
                if not _is_of_a_left_page(answer) and _value(answer):
                    return
                # A page reports no such change.
                await trio.sleep(0.1)
        shown = await self.run("document.body.innerText")
        raise AssertionError(f"{expression} was not true within {within} s:\n{shown}")

    async def press(self, key: str) -> None:
        """Press and release a key, such as ``Tab``."""
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    async def show_as(self, width: int, height: int, scheme: str = "light") -> None:
        """Set the size of the screen in CSS pixels, and the colour scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1}
        await self.call("Emulation.setDeviceMetricsOverride", mobile=False, **size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        await self.call("Emulation.setEmulatedMedia", features=[feature])

    async def screenshot(self) -> bytes:
        """Return a picture of the whole page as PNG."""
        result = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(result["data"])

    def _take(self, event: object) -> None:
        match event:
            case Message(data=str() as text, message_finished=finished):
                self._text += text
                if finished:
                    document, self._text = json.loads(self._text), ""
                    self._take_document(document)
            case AcceptConnection():
                self.connected.set()

    def _take_document(self, document: dict[str, Any]) -> None:
        if "id" in document:
            self._results[document["id"]] = document
        elif document["method"] == "Log.entryAdded":
            self.complaints.append(document["params"]["entry"]["text"])
        elif document["method"] == "Runtime.exceptionThrown":
            self.complaints.append(str(document["params"]["exceptionDetails"]))


def _result(answer: dict[str, Any]) -> dict[str, Any]:
    assert "error" not in answer, answer
    result: dict[str, Any] = answer["result"]
    return result


def _value(answer: dict[str, Any]) -> Any:  # noqa: ANN401 - JSON
    result = _result(answer)
    assert "exceptionDetails" not in result, result
    return result["result"].get("value")


def _is_of_a_left_page(answer: dict[str, Any]) -> bool:
    """Return whether a page was reloaded, or left for another one, during an evaluation."""
    return "navigated" in answer.get("error", {}).get("message", "")


@asynccontextmanager
async def chromium(folder: Path) -> AsyncIterator[Browser]:
    """Run Chromium with its profile in ``folder`` and yield its page; end it after the body."""
    command = [find_tool("chromium"), *OPTIONS, f"--user-data-dir={folder}", "about:blank"]
    async with trio.open_nursery() as nursery:
        run = partial(trio.run_process, command, check=False, stdin=subprocess.DEVNULL)
        nursery.start_soon(partial(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        port = await _port(folder / "DevToolsActivePort")
        async with http_client() as client:
            targets = (await client.get(f"http://127.0.0.1:{port}/json/list")).json()
        page = next(target for target in targets if target["type"] == "page")
        path = page["webSocketDebuggerUrl"].partition(f":{port}")[2]
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            browser = Browser(stream)
            await browser.connect(f"127.0.0.1:{port}", path)
            nursery.start_soon(browser.receive)
            with trio.fail_after(_WITHIN):
                await browser.connected.wait()
            yield browser
            nursery.cancel_scope.cancel()


async def _port(path: Path) -> int:
    """Return the port that the browser writes into its profile once it listens."""
    file = trio.Path(path)
    with trio.fail_after(_WITHIN):
        while not (await file.exists() and "\n" in await file.read_text()):  # noqa: ASYNC110
            await trio.sleep(0.05)
    return int((await file.read_text()).split("\n")[0])
