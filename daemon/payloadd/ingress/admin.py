"""The Quart-Trio app of the admin address: health, readiness, metrics, status page, description."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from quart import Response, request

from payloadd.errors import RefusedError
from payloadd.ingress.api import add_openapi, add_route, bare_app, healthz, json_response
from payloadd.ingress.operations import METRICS_TYPE
from payloadd.ingress.problem import refusal_problem
from payloadd.ingress.status_page import StatusPage
from payloadd.observe.status import trouble_documents

if TYPE_CHECKING:
    from quart_trio import QuartTrio
    from werkzeug.datastructures import Accept

    from payloadd.config.settings import Settings
    from payloadd.ingress.status_page import Shown
    from payloadd.observe.health import Health
    from payloadd.observe.metrics import Metrics
    from payloadd.pipeline.intake import Intake

_OPENMETRICS: Final = "application/openmetrics-text"
_OPENMETRICS_TYPE: Final = f"{_OPENMETRICS}; version=1.0.0; charset=utf-8"

_TEXT: Final = "text/plain"

_RETRY_AFTER: Final = 1
"""Seconds that a client is told to wait while the daemon starts, or is about to end."""


def make_admin_app(
    intake: Intake,
    health: Health,
    metrics: Metrics,
    settings: Settings,
    shown: Shown | None = None,
) -> QuartTrio:
    """Return the app of the admin address; ``shown`` is what the status page shows."""
    app = bare_app(health)
    handlers = _AdminHandlers(intake, health, metrics)
    if shown is not None:
        page = StatusPage(health, shown, handlers.refusal)
        app.asgi_app = page.answer_directly(app.asgi_app)  # type: ignore[assignment]
        for path, handler in page.routes().items():
            add_route(app, ("GET",), path, handler)
    add_route(app, ("GET",), "/healthz", healthz)
    add_route(app, ("GET",), "/readyz", handlers.readyz)
    add_route(app, ("GET",), "/metrics", handlers.metrics)
    add_openapi(app, settings)
    return app


class _AdminHandlers:
    """Answers the requests of the admin address."""

    def __init__(self, intake: Intake, health: Health, metrics: Metrics) -> None:
        self._intake = intake
        self._health = health
        self._metrics = metrics

    async def readyz(self) -> Response:
        """Answer 200 while POSTs are accepted, else 503; both list the troubles.

        A trouble of the store alone does not cause a 503: requests are still accepted, and a load
        balancer that removes the daemon would not help. With ``DURABILITY=store`` it would: a
        request that no daemon can store is refused at once.
        """
        refusal = self.refusal()
        troubles = trouble_documents(self._health.snapshot())
        if refusal is not None:
            raise refusal_problem(refusal, {"troubles": troubles})
        return json_response(200, {"status": "ready", "troubles": troubles})

    async def metrics(self) -> Response:
        """Answer with the metrics in Prometheus's text format, or OpenMetrics if it is asked for.

        Prometheus prefers OpenMetrics, and names it in Accept.
        """
        wanted, plain = (_quality(request.accept_mimetypes, name) for name in (_OPENMETRICS, _TEXT))
        if wanted and wanted >= plain:
            body = self._metrics.render_openmetrics()
            return Response(body, content_type=_OPENMETRICS_TYPE)
        return Response(self._metrics.render(), content_type=METRICS_TYPE)

    def refusal(self) -> RefusedError | None:
        """Return the reason for which a POST would be refused now, None if it would be accepted."""
        if self._health.phase == "starting":
            return RefusedError("STARTING", "the daemon does not accept requests yet", _RETRY_AFTER)
        if self._health.phase == "leaving":
            return RefusedError("DRAINING", "the daemon is about to shut down", _RETRY_AFTER)
        return self._intake.refusal()


def _quality(accepted: Accept, media_type: str) -> float:
    """Return the largest quality of ``media_type``, with any parameters, in an Accept; 0 without.

    Source: RFC 9110, section 12.5.1.
    """
    return max((q for name, q in accepted if name.partition(";")[0] == media_type), default=0.0)
