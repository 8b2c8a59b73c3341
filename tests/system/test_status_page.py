"""The status page in a real browser: what an operator sees of a daemon that runs."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.daemon import running_daemon
from tests.support.devtools import chromium
from tests.support.faults import Answer, fault_server
from tests.support.loopback import free_port, http_client
from tests.support.tools import need_tools

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.daemon import Daemon
    from tests.support.devtools import Browser

pytestmark = pytest.mark.large

VERDICT: Final = "document.getElementById('verdict').textContent"
KIND: Final = "document.getElementById('verdict').className"
TROUBLES: Final = "document.getElementById('troubles').innerText"
FIGURES: Final = "document.getElementById('figures').innerText"
MARKUP: Final = "<img src=x onerror=window.ran=1><script>window.ran=1</script>"
DENIED: Final = (
    '<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code><Message>'
    + MARKUP.replace("<", "&lt;").replace(">", "&gt;")
    + "</Message></Error>"
).encode()
OVERFLOW: Final = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(autouse=True)
def _need_chromium() -> None:
    need_tools("chromium")


async def post(daemon: Daemon, payloads: int = 1) -> None:
    """Post a collection whose Idempotency-Key looks like markup."""
    headers = {"Idempotency-Key": f"{MARKUP.replace(' ', '/')}{os.urandom(4).hex()}"}
    async with http_client() as client:
        body = {"payloads": [{"n": number, "text": "x" * 200} for number in range(payloads)]}
        answer = await client.post(f"{daemon.url}/v1/payloads", json=body, headers=headers)
    assert answer.status_code == 202


@asynccontextmanager
async def page_of(daemon: Daemon, folder: Path) -> AsyncIterator[Browser]:
    """Open the page of a daemon."""
    async with chromium(folder / "browser") as browser:
        await browser.open(f"{daemon.admin_url}/")
        await browser.wait_for(f"{KIND} !== 'unknown'")
        yield browser


async def test_the_page_shows_the_figures_of_a_daemon_that_is_well(tmp_path: Path) -> None:
    """An operator could not see within seconds whether all is well."""
    async with running_daemon(tmp_path) as daemon, page_of(daemon, tmp_path) as browser:
        await browser.wait_for(f"{VERDICT}.startsWith('All is well')")
        await post(daemon, 7)
        await browser.wait_for(f"{FIGURES}.includes('7 payloads since the start')", 15)
        await browser.wait_for("document.querySelectorAll('.u-over').length === 6")
        settings = await browser.run("document.getElementById('settings').innerText")
        assert "BIND\t127.0.0.1:0" in settings
        assert await browser.run("document.querySelectorAll('canvas').length") == 6
        assert browser.complaints == []


async def test_a_trouble_comes_and_goes_and_its_markup_is_text(tmp_path: Path) -> None:
    """An operator would not see a trouble, or an error of a store would run as a script."""
    async with fault_server(lambda _: Answer(403, DENIED)) as store:
        env = {
            "STORE_URL": "s3://bucket/<b>prefix</b>",
            "AWS_ENDPOINT_URL_S3": store.url,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "AKIASHOWN",
            "AWS_SECRET_ACCESS_KEY": "secret-of-the-store",
        }
        async with running_daemon(tmp_path, env) as daemon, page_of(daemon, tmp_path) as browser:
            await post(daemon)
            await browser.wait_for(f"{KIND} === 'bad'", 15)
            shown = await browser.run(TROUBLES)
            assert "AccessDenied" in shown
            assert MARKUP in shown
            assert "Since" in shown
            assert "s3:PutObject" in shown
            assert "s3://bucket/<b>prefix</b>" in await browser.run(
                "document.getElementById('where').textContent"
            )
            assert await browser.run("window.ran") is None
            assert (
                await browser.run("document.querySelectorAll('main img, main script, b').length")
                == 0
            )
            page = await browser.run("document.documentElement.outerHTML")
            assert "secret-of-the-store" not in page
            assert "AKIASHOWN" not in page
            store.script = lambda _: Answer(200, headers={"etag": '"0"'})
            await browser.wait_for(f"{KIND} === 'good'", 60)
            assert await browser.run("document.getElementById('troubles').hidden")
            assert browser.complaints == []


async def test_dead_letters_are_listed_by_reason(tmp_path: Path) -> None:
    """An operator would not see that payloads are not stored, or why."""
    refusal = DENIED.replace(b"AccessDenied", b"EntityTooLarge")
    async with fault_server(lambda _: Answer(400, refusal)) as store:
        env = {
            "BATCH_MAX_PAYLOADS": "1",
            "STORE_URL": "s3://bucket",
            "AWS_ENDPOINT_URL_S3": store.url,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }
        async with running_daemon(tmp_path, env) as daemon, page_of(daemon, tmp_path) as browser:
            await browser.wait_for(f"{KIND} === 'good'")
            await post(daemon, 3)
            dead = "document.getElementById('dead').innerText"
            await browser.wait_for(f"{dead}.includes('default\\tEntityTooLarge\\t3\\t3')", 30)
            await browser.wait_for(f"{VERDICT} === '3 payloads are dead letters'")
            async with http_client() as client:
                document = (await client.get(f"{daemon.admin_url}/status.json")).json()
            assert document["dead_letters"] == [
                {"stream": "default", "code": "EntityTooLarge", "letters": 3, "payloads": 3}
            ]


async def test_the_page_survives_a_restart_of_the_daemon(tmp_path: Path) -> None:
    """An operator would look at the figures of a process that has ended."""
    env = {"ADMIN_BIND": f"127.0.0.1:{free_port()}"}
    async with chromium(tmp_path / "browser") as browser:
        async with running_daemon(tmp_path, env) as daemon:
            await browser.open(f"{daemon.admin_url}/")
            await browser.wait_for(f"{VERDICT}.startsWith('All is well')")
            await post(daemon, 3)
            await browser.wait_for(f"{FIGURES}.includes('3 payloads since the start')", 15)
            first = daemon.pid
        await browser.wait_for(f"{VERDICT}.includes('no connection to the daemon')", 15)
        async with running_daemon(tmp_path, env) as daemon:
            assert daemon.pid != first
            await browser.wait_for(f"{VERDICT}.startsWith('All is well')", 15)
            where = await browser.run("document.getElementById('where').textContent")
            assert f"process {daemon.pid}," in where
            assert "0 payloads since the start" in await browser.run(FIGURES)


async def test_error_answers_are_shown(tmp_path: Path) -> None:
    """A page behind a broken proxy would show old figures as if they were new."""
    async with running_daemon(tmp_path) as daemon, page_of(daemon, tmp_path) as browser:
        await browser.run(
            'window.fetch = async () => new Response(\'{"code":"BUSY"}\', {status: 503}), 1'
        )
        await browser.wait_for(f"{VERDICT}.includes('the daemon answers 503 BUSY')", 15)
        assert await browser.run(KIND) == "bad"
        assert await browser.run("document.getElementById('content').className") == "stale"


async def test_the_page_fits_a_phone_follows_the_scheme_and_shows_the_focus(
    tmp_path: Path,
) -> None:
    """An operator with a phone, a dark room or no mouse could not use the page."""
    env = {"STORE_URL": f"file://{tmp_path}/{'long-name-' * 12}"}
    async with running_daemon(tmp_path, env) as daemon, page_of(daemon, tmp_path) as browser:
        for width in (320, 390, 1400):
            await browser.show_as(width, 800)
            await browser.wait_for(f"{OVERFLOW} <= 0", 10)
        back = "getComputedStyle(document.body).backgroundColor"
        await browser.wait_for(f"{back} === 'rgb(255, 255, 255)'")
        await browser.run("window.isLight = true")
        await browser.show_as(390, 800, "dark")
        # The page reloads itself, so that its plots are drawn in the other colours.
        await browser.wait_for("window.isLight === undefined && document.readyState === 'complete'")
        await browser.wait_for(f"{back} === 'rgb(13, 17, 23)'")
        await browser.wait_for(f"{VERDICT}.startsWith('All is well')")
        focused = set()
        for _ in range(6):
            await browser.press("Tab")
            text = "document.activeElement.textContent.slice(0, 12)"
            style = "getComputedStyle(document.activeElement).outlineStyle"
            if await browser.run("document.activeElement !== document.body"):
                focused.add(await browser.run(text))
                assert await browser.run(style) == "solid"
        assert {"status.json", "metrics", "readyz"} <= focused
