"""The admin address: health, readiness and metrics for load balancers, monitoring and operators."""

from __future__ import annotations

from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal, cast

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)

from payloadd.config import settings as config
from payloadd.errors import RefusedError
from payloadd.ingress.admin import make_admin_app
from payloadd.observe.health import Health
from payloadd.observe.metrics import Metrics
from payloadd.pipeline.intake import Intake
from tests.ingress.rig import FakeIntake, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

    from payloadd.journal.api import Journal
    from payloadd.observe.status import Phase


class Admin:
    """The admin app and the objects that it reports on."""

    def __init__(self, phase: Phase) -> None:
        self.fake_intake = FakeIntake()
        self.intake: Intake = self.fake_intake
        self.health = Health()
        self.health.phase = phase
        self.metrics = Metrics(self.health.snapshot)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """Serve the admin app and yield a client for it."""
        app = make_admin_app(self.intake, self.health, self.metrics, config.load({}))
        async with running(app) as rig, rig.client() as client:
            yield client


async def test_readyz_answers_200_while_the_daemon_serves() -> None:
    """Otherwise a load balancer would send no requests."""
    async with Admin("serving").client() as client:
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready", "troubles": []})
        assert (await client.get("/healthz")).json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("phase", "refusal", "code", "wait"),
    [
        ("starting", None, "STARTING", "1"),
        ("serving", RefusedError("QUEUE_FULL", "the queue is full", 9), "QUEUE_FULL", "9"),
    ],
)
async def test_readyz_answers_503_while_posts_are_refused(
    phase: Literal["starting", "serving"],
    refusal: RefusedError | None,
    code: str,
    wait: str,
) -> None:
    """Otherwise a load balancer would keep sending requests that are refused."""
    admin = Admin(phase)
    admin.fake_intake.says = refusal
    admin.health.report("store", "AccessDenied", "403")
    async with admin.client() as client:
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert int(wait) <= int(answer.headers["retry-after"]) <= 1.5 * int(wait) + 1
        assert answer.headers["content-type"] == "application/problem+json"
        assert (answer.json()["code"], len(answer.json()["troubles"])) == (code, 1)
        assert (await client.get("/healthz")).status_code == 200


async def test_readyz_answers_503_while_the_daemon_drains() -> None:
    """Otherwise a load balancer would send requests to a daemon that shuts down."""
    admin = Admin("draining")
    settings = config.load({"BIND": "127.0.0.1:0"})
    # The journal is not asked while the daemon drains.
    admin.intake = Intake(cast("Journal", SimpleNamespace(append=None)), admin.health, settings)
    async with admin.client() as client:
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["code"]) == (503, "DRAINING")
        assert 5 <= int(answer.headers["retry-after"]) <= 8


async def test_readyz_answers_503_before_the_listeners_close() -> None:
    """Otherwise a load balancer would notice the end by requests that fail."""
    async with Admin("leaving").client() as client:
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["code"]) == (503, "DRAINING")


@pytest.mark.parametrize("refusal", [None, RefusedError("QUEUE_FULL", "x\x9b\u202ey ü", 9)])
async def test_control_characters_in_the_texts_of_a_store_are_escaped(
    refusal: RefusedError | None,
) -> None:
    """Otherwise a store could rewrite the terminal of an operator."""
    reason = "no\x9b2J\u202e\u2028way, Zürich 日本"
    admin = Admin("serving")
    admin.health.report("store", "AccessDenied", reason)
    admin.fake_intake.says = refusal
    async with admin.client() as client:
        answer = await client.get("/readyz")
        assert not set(answer.text) & set("\x9b\u202e\u2028")
        assert "Zürich 日本" in answer.text
        assert answer.json()["troubles"][0]["reason"] == reason
        assert refusal is None or answer.json()["detail"] == refusal.detail


async def test_readyz_lists_the_troubles() -> None:
    """Otherwise an operator would have to search the log for the reason why nothing is stored."""
    admin = Admin("serving")
    admin.health.report("store", "AccessDenied", "PutObject: 403")
    async with admin.client() as client:
        answer = await client.get("/readyz")
        assert answer.status_code == 200
        (trouble,) = answer.json()["troubles"]
        assert trouble.pop("since").endswith("+00:00")
        assert trouble == {"part": "store", "code": "AccessDenied", "reason": "PutObject: 403"}


async def test_metrics_are_in_prometheus_text_format_and_show_the_drain() -> None:
    """Otherwise monitoring could not parse the answer, or would not see the drain."""
    admin = Admin("serving")
    async with admin.client() as client:
        answer = await client.get("/metrics")
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert "payloadd_draining 0.0" in answer.text
        admin.health.phase = "draining"
        assert "payloadd_draining 1.0" in (await client.get("/metrics")).text


async def test_metrics_are_in_openmetrics_format_if_it_is_asked_for() -> None:
    """A Prometheus that asks for OpenMetrics would get the older format."""
    admin = Admin("serving")
    admin.metrics.requests.count(202)
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
    async with admin.client() as client:
        answer = await client.get("/metrics", headers={"Accept": accept})
        expected = "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert answer.headers["content-type"] == expected
        assert answer.text.endswith("# EOF\n")
        families = {family.name for family in parse_openmetrics(answer.text)}  # type: ignore[no-untyped-call]
        assert {"payloadd_requests", "payloadd_object_bytes", "payloadd_queue_jobs"} <= families


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("application/openmetrics-text;version=0.0.1;q=0.5, text/plain;q=0.9", "text/plain"),
        ("application/openmetrics-text;q=0, */*", "text/plain"),
        ("*/*", "text/plain"),
        ("text/plain;q=0.5, application/openmetrics-text", "application/openmetrics-text"),
        ("application/openmetrics-text; version=1.0.0, text/plain", "application/openmetrics-text"),
    ],
)
async def test_the_format_of_metrics_is_the_one_that_is_preferred(
    accept: str, expected: str
) -> None:
    """A scraper that cannot read OpenMetrics well would get it."""
    async with Admin("serving").client() as client:
        answer = await client.get("/metrics", headers={"Accept": accept})
        assert answer.headers["content-type"].partition(";")[0] == expected


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/x", 404), ("POST", "/metrics", 405)]
)
async def test_errors_on_the_admin_address_are_problem_json(
    method: str, path: str, status: int
) -> None:
    """Otherwise a mistyped URL would be answered with an HTML page."""
    async with Admin("serving").client() as client:
        answer = await client.request(method, path)
        assert (answer.status_code, answer.json()["status"]) == (status, status)
        assert answer.headers["content-type"] == "application/problem+json"
