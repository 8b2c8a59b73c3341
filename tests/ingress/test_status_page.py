"""The page of the admin address and its polls, over the real server."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio

from payloadd.config import settings as config
from payloadd.errors import RefusedError
from payloadd.ingress.admin import make_admin_app
from payloadd.ingress.status_page import Shown, StatusPage
from payloadd.observe.dead_letter_figures import DeadLetterFigures
from payloadd.observe.health import Health
from payloadd.observe.history import History
from payloadd.observe.metrics import Metrics
from payloadd.observe.status import DeadLetterGroup
from payloadd.observe.status_document import Facts
from tests.ingress.rig import FakeIntake, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

FILES: Final = {
    "/": "text/html; charset=utf-8",
    "/page/page.css": "text/css; charset=utf-8",
    "/page/page.js": "text/javascript; charset=utf-8",
    "/page/uplot.css": "text/css; charset=utf-8",
    "/page/uplot.js": "text/javascript; charset=utf-8",
}
GROUP: Final = DeadLetterGroup("default", "EntityTooLarge", 1, 2)


class Admin:
    """The admin app with a page, and the objects that it shows."""

    def __init__(self) -> None:
        self.intake = FakeIntake()
        self.health = Health()
        self.health.phase = "serving"
        self.metrics = Metrics(self.health.snapshot)
        self.history = History(self.health.snapshot, self.metrics.timings)
        self.dead_letters = DeadLetterFigures(lambda: [GROUP])
        facts = Facts.of(config.load({}), self.history.started)
        self.shown = Shown(self.history, facts, self.dead_letters)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """Serve the admin app and yield a client for it."""
        app = make_admin_app(self.intake, self.health, self.metrics, config.load({}), self.shown)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.dead_letters.run)
            async with running(app) as rig, rig.client() as client:
                yield client
            nursery.cancel_scope.cancel()


class PolledPage:
    """A page object without a server, with a clock that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.admin = Admin()
        self.admin.dead_letters._read_at = float("inf")
        self.page = StatusPage(self.admin.health, self.admin.shown, lambda: None, lambda: self.now)
        self.renders = 0
        snapshot = self.admin.health.snapshot

        def counted() -> Any:  # noqa: ANN401 - a Status
            self.renders += 1
            return snapshot()

        self.admin.health.snapshot = counted  # type: ignore[method-assign]

    async def poll(self, query: str) -> dict[str, Any]:
        """Return the document for a query."""
        found: dict[str, Any] = json.loads(await self.page._answer(query.encode()))
        return found


@pytest.mark.parametrize(("path", "media_type"), FILES.items())
async def test_files_are_sent_with_a_policy_that_allows_no_other_scripts(
    path: str, media_type: str
) -> None:
    """A text of a store could run a script in the browser of an operator."""
    async with Admin().client() as client:
        answer = await client.get(path)
        assert (answer.status_code, answer.headers["content-type"]) == (200, media_type)
        policy = dict(
            part.strip().split(" ", 1)
            for part in answer.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        head = await client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(answer.content))


async def test_the_page_names_no_other_host_and_has_no_script_of_its_own() -> None:
    """A machine without the internet could not show it, and the policy forbids it."""
    async with Admin().client() as client:
        text = (await client.get("/")).text
    assert "//" not in text.replace("<!doctype", "")
    assert "<style" not in text
    assert " style=" not in text
    assert " on" not in {part[:3] for part in text.split("<")}
    assert text.count("<script") == text.count("<script src=")


@pytest.mark.parametrize(
    "path", ["/page/", "/page/x.js", "/page/../admin.py", "/page/uplot-LICENSE.txt", "/page", "/x"]
)
async def test_other_files_are_not_found(path: str) -> None:
    """Files of the package could be read from outside."""
    async with Admin().client() as client:
        assert (await client.get(path)).status_code == 404


async def test_the_public_address_has_no_page() -> None:
    """Every client could read the state and the settings of the daemon."""
    async with running() as rig, rig.client() as client:
        for path in (*FILES, "/status.json"):
            assert (await client.get(path)).status_code == 404


@pytest.mark.parametrize("phase", ["starting", "serving", "draining"])
async def test_the_document_is_sent_in_every_phase(phase: Any) -> None:  # noqa: ANN401 - a Phase
    """An operator could not see why a daemon does not start or end."""
    admin = Admin()
    admin.health.phase = phase
    admin.health.report("store", "AccessDenied", "<b>\x9b\u202e no \udcff")
    admin.intake.says = RefusedError("QUEUE_FULL", "the queue is full", 1)
    admin.history.take()
    async with admin.client() as client:
        answer = await client.get("/status.json", params={"since": "0", "page": "a"})
        document = answer.json()
        assert (answer.status_code, document["phase"]) == (200, phase)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers.get("connection") == ("close" if phase == "draining" else None)
        assert document["troubles"][0]["reason"] == "<b>\x9b\u202e no \\udcff"
        assert not set(answer.text) & set("\x9b\u202e")
        code = "STARTING" if phase == "starting" else "QUEUE_FULL"
        assert document["refusal"]["code"] == code
        assert document["dead_letters"][0]["code"] == "EntityTooLarge"
        assert len(document["history"]) == 1
        assert len(document["history"][0]) == 14
        assert document["now"] >= document["started"]


async def test_polls_are_answered_as_quart_would() -> None:
    """The short way past Quart would lose a header, or break the next request."""
    async with Admin().client() as client:
        short = await client.get("/status.json", params={"page": "a"})
        by_quart = await client.request("GET", "/status.json", params={"page": "a"}, content=b"x")
        head = await client.head("/status.json")
        assert {**short.headers, "date": "", "connection": ""} == {
            **by_quart.headers,
            "date": "",
            "connection": "",
        }
        assert (head.status_code, head.content) == (200, b"")
        assert (await client.post("/status.json")).status_code == 405
        for _ in range(20):
            assert (await client.get("/status.json")).status_code == 200


@pytest.mark.parametrize(
    "since", ["nan", "inf", "-inf", "1e999", "yesterday", "", "0x10", "9" * 400]
)
async def test_a_moment_that_is_none_is_refused(since: str) -> None:
    """A script with a mistake would get the wrong history without a word."""
    admin = Admin()
    admin.history.take()
    async with admin.client() as client:
        answer = await client.get(f"/status.json?since={since}")
        if since == "":  # the parameter without a value counts as not given
            assert (answer.status_code, "history" in answer.json()) == (200, False)
        else:
            assert (answer.status_code, answer.json()["code"]) == (400, "MALFORMED")
        for good in ("-1", "1e300", "0.5", "1" * 300):
            assert (await client.get(f"/status.json?since={good}")).status_code == 200


async def test_odd_queries_are_answered() -> None:
    """A query that no page sends could end in an error of the daemon."""
    page = PolledPage()
    for query in ("page=" + "x" * 5000, "page=%ff%00", "&&&=;", "a=" * 2000, "since=1&since=2"):
        assert (await page.poll(query))["phase"] == "serving"
    assert all(len(name) <= 40 for name in page.page._pages)


async def test_ten_pages_poll_often_and_others_rarely() -> None:
    """A hundred open pages would cost as much as hundreds of POSTs."""
    page = PolledPage()
    told = [(await page.poll(f"page={number}"))["poll_seconds"] for number in range(100)]
    assert told == [3] * 10 + [10] * 90
    again = [(await page.poll(f"page={number}"))["poll_seconds"] for number in range(100)]
    assert again == told
    assert (await page.poll(""))["poll_seconds"] == 3


async def test_a_page_that_was_closed_makes_place_for_another() -> None:
    """A page that is open for days would stay slow."""
    page = PolledPage()
    for number in range(11):
        await page.poll(f"page={number}")
    page.now = 29
    assert (await page.poll("page=10"))["poll_seconds"] == 10
    page.now = 31
    assert (await page.poll("page=10"))["poll_seconds"] == 3
    assert set(page.page._pages) == {"10"}


async def test_the_pages_of_a_kind_share_a_document() -> None:
    """Each page would have its own rendered."""
    page = PolledPage()
    for number in range(100):
        await page.poll(f"page={number}")
    assert page.renders == 2
    page.now = 2
    for number in range(100):
        await page.poll(f"page={number}")
    assert page.renders == 3
    page.now = 10
    for number in range(100):
        await page.poll(f"page={number}")
    assert page.renders == 5


async def test_a_shared_document_has_the_history_of_its_page() -> None:
    """A page would miss samples or get them twice."""
    page = PolledPage()
    for _ in range(3):
        page.admin.history.take()
        await trio.sleep(0.002)
    times = [sample.at for sample in page.admin.history.since(0)]
    for since in (0.0, *times):
        document = await page.poll(f"page=a&since={since!r}")
        assert [row[0] for row in document["history"]] == [at for at in times if at > since]


async def test_a_request_without_a_page_gets_the_figures_of_the_moment() -> None:
    """A script that waits for a figure would wait ten seconds longer."""
    page = PolledPage()
    for number in range(100):
        await page.poll(f"page={number}")
    page.admin.health.report("store", "NoAnswer", "")
    assert (await page.poll("page=99"))["troubles"] == []
    assert (await page.poll(""))["troubles"] != []
    assert len(page.page._pages) == 100


async def test_open_pages_are_bounded() -> None:
    """A client that invents names of pages would fill the memory."""
    page = PolledPage()
    for number in range(3000):
        await page.poll(f"page={number}")
    assert len(page.page._pages) == 1000
    assert len(page.page._frequent) == 10
