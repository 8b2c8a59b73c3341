"""What balancers, monitoring and people ask on the admin address."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal

import pytest

from payloadd.errors import RefusedError
from payloadd.ingress.admin import make_admin_app
from payloadd.observe.health import Health
from payloadd.observe.metrics import Metrics
from tests.ingress.rig import FakeIntake, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx


class Desk:
    """What the admin app tells about."""

    def __init__(self, phase: Literal["starting", "serving", "draining"]) -> None:
        self.intake = FakeIntake()
        self.health = Health()
        self.health.phase = phase
        self.metrics = Metrics(self.health.snapshot)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        """Serve the admin app and yield a client for it."""
        app = make_admin_app(self.intake, self.health, self.metrics)
        async with running(app) as rig, rig.client() as client:
            yield client


async def test_ready() -> None:
    """A balancer would not send anything."""
    async with Desk("serving").client() as client:
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready", "troubles": []})
        assert (await client.get("/healthz")).json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("phase", "refusal", "code", "wait"),
    [
        ("starting", None, "STARTING", "1"),
        ("draining", None, "DRAINING", "1"),
        ("draining", RefusedError("DRAINING", "going", 5), "DRAINING", "5"),
        ("serving", RefusedError("QUEUE_FULL", "full", 9), "QUEUE_FULL", "9"),
    ],
)
async def test_not_ready(
    phase: Literal["starting", "serving", "draining"],
    refusal: RefusedError | None,
    code: str,
    wait: str,
) -> None:
    """A balancer would go on sending what is refused."""
    desk = Desk(phase)
    desk.intake.says = refusal
    desk.health.report("store", "AccessDenied", "403")
    async with desk.client() as client:
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert int(wait) <= int(answer.headers["retry-after"]) <= 1.5 * int(wait) + 1
        assert answer.headers["content-type"] == "application/problem+json"
        assert (answer.json()["code"], len(answer.json()["troubles"])) == (code, 1)
        assert (await client.get("/healthz")).status_code == 200


@pytest.mark.parametrize("refusal", [None, RefusedError("QUEUE_FULL", "x\x9b\u202ey ü", 9)])
async def test_control_characters_of_a_store_are_escaped(refusal: RefusedError | None) -> None:
    """What a store says would rewrite the terminal of the person who asks."""
    reason = "no\x9b2J\u202e\u2028way, Zürich 日本"
    desk = Desk("serving")
    desk.health.report("store", "AccessDenied", reason)
    desk.intake.says = refusal
    async with desk.client() as client:
        answer = await client.get("/readyz")
        assert not set(answer.text) & set("\x9b\u202e\u2028")
        assert "Zürich 日本" in answer.text
        assert answer.json()["troubles"][0]["reason"] == reason
        assert refusal is None or answer.json()["detail"] == refusal.detail


async def test_troubles_are_named() -> None:
    """An operator would have to search the log for why nothing is stored."""
    desk = Desk("serving")
    desk.health.report("store", "AccessDenied", "PutObject: 403")
    async with desk.client() as client:
        answer = await client.get("/readyz")
        assert answer.status_code == 200
        (trouble,) = answer.json()["troubles"]
        assert trouble.pop("since").endswith("+00:00")
        assert trouble == {"part": "store", "code": "AccessDenied", "reason": "PutObject: 403"}


async def test_metrics() -> None:
    """Monitoring would not understand the answer, or not see the drain."""
    desk = Desk("serving")
    async with desk.client() as client:
        answer = await client.get("/metrics")
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert "payloadd_draining 0.0" in answer.text
        desk.health.phase = "draining"
        assert "payloadd_draining 1.0" in (await client.get("/metrics")).text


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/x", 404), ("POST", "/metrics", 405)]
)
async def test_errors_are_problems_too(method: str, path: str, status: int) -> None:
    """A mistyped URL would be answered with a page."""
    async with Desk("serving").client() as client:
        answer = await client.request(method, path)
        assert (answer.status_code, answer.json()["status"]) == (status, status)
        assert answer.headers["content-type"] == "application/problem+json"
