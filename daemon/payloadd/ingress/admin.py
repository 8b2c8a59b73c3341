"""The Quart-Trio app of the admin address: health, readiness, metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from quart import Response

from payloadd.errors import RefusedError
from payloadd.ingress.api import add_route, bare_app, healthz, json_response
from payloadd.ingress.problem import refused
from payloadd.observe.status import trouble_documents

if TYPE_CHECKING:
    from quart_trio import QuartTrio

    from payloadd.observe.health import Health
    from payloadd.observe.metrics import Metrics
    from payloadd.pipeline.intake import Intake

# Not prometheus_client's constant, which names whatever format its own version likes best.
_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_SOON: Final = 1
"""Retry-After in seconds, where the phase alone says no."""


def make_admin_app(intake: Intake, health: Health, metrics: Metrics) -> QuartTrio:
    """Return the app of the admin address."""
    app = bare_app(health)
    handlers = _AdminHandlers(intake, health, metrics)
    add_route(app, "GET", "/healthz", healthz)
    add_route(app, "GET", "/readyz", handlers.readyz)
    add_route(app, "GET", "/metrics", handlers.metrics)
    return app


class _AdminHandlers:
    """Tells how the daemon is."""

    def __init__(self, intake: Intake, health: Health, metrics: Metrics) -> None:
        self._intake = intake
        self._health = health
        self._metrics = metrics

    async def readyz(self) -> Response:
        """Answer 200 while POSTs would be taken, else 503; both name what an operator can mend.

        A store that waits for an operator does not make it 503: requests are accepted all the
        same, and taking the daemon out of the balancer would not help.
        """
        refusal = self._refusal()
        troubles = trouble_documents(self._health.snapshot())
        if refusal is not None:
            raise refused(refusal, {"troubles": troubles})
        return json_response(200, {"status": "ready", "troubles": troubles})

    async def metrics(self) -> Response:
        """Answer with the metrics in Prometheus's text format."""
        return Response(self._metrics.render(), content_type=_METRICS_TYPE)

    def _refusal(self) -> RefusedError | None:
        if self._health.phase == "starting":
            return RefusedError("STARTING", "the daemon does not listen yet", _SOON)
        refusal = self._intake.refusal()
        if refusal is None and self._health.phase == "draining":
            return RefusedError("DRAINING", "the daemon is shutting down", _SOON)
        return refusal
