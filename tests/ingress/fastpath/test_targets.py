"""What is at the targets of the public address; ``test_api.py`` compares both ways in."""

from __future__ import annotations

import pytest

from payloadd.ingress.fastpath.answers import FixedAnswer
from payloadd.ingress.fastpath.targets import PATHS, Targets
from payloadd.ingress.routes import Route, Routes, Stream
from tests.ingress import rig as rigs

TARGETS = Targets(Routes({"default": 0, "clicks": 1}), b"{}")


async def test_all_paths_of_the_app_are_known() -> None:
    """A new path would be a 404, except through Hypercorn."""
    async with rigs.running() as rig, rig.client() as client:
        detail = (await client.get("/nothing")).json()["detail"]
        for path in PATHS:
            answer = await client.options(path.replace("{stream}", "default"))
            assert answer.status_code == 204
    rigs_paths = detail.partition("; known are ")[2].split(", ")
    assert rigs_paths == [*PATHS]


@pytest.mark.parametrize(
    ("method", "target", "expected"),
    [
        ("POST", b"/v1/payloads", Route(document=False, stream=Stream("default", 0))),
        ("PUT", b"/v1/payload/clicks/?x", Route(document=True, stream=Stream("clicks", 1))),
        ("POST", b"http://x/v1/payload/%63licks", Route(document=True, stream=Stream("clicks", 1))),
        ("POST", b"/v1/payloads/%2e", Route(document=False, stream=Stream(".", -1))),
    ],
)  # fmt: skip
def test_posts_have_a_route(method: str, target: bytes, expected: Route) -> None:
    """Payloads would be stored in another stream, or be refused."""
    found, label = TARGETS.find(method, target)
    assert found == expected
    assert label == ("payload" if expected.document else "payloads")


@pytest.mark.parametrize(
    ("method", "target", "code", "label"),
    [
        ("POST", b"/v1/payloads//", "NOT_FOUND", "payloads"),
        ("POST", b"//v1/payloads", "NOT_FOUND", "other"),
        ("POST", b"http://x//v1/payloads", "NOT_FOUND", "other"),
        ("POST", b"/v1/payloads%2fclicks", "NOT_FOUND", "payloads"),
        ("OPTIONS", b"/v1/payloads%2Fclicks", "NOT_FOUND", "payloads"),
        ("OPTIONS", b"*", "NOT_FOUND", "other"), ("CONNECT", b"x:80", "NOT_FOUND", "other"),
        ("GET", b"http://x", "NOT_FOUND", "page"), ("GET", b"/", "NOT_FOUND", "page"),
        ("GET", b"/v1/payloads", "METHOD_NOT_ALLOWED", "payloads"),
        ("BREW", b"/healthz", "METHOD_NOT_ALLOWED", "healthz"),
    ],
)  # fmt: skip
def test_other_requests_have_a_problem(method: str, target: bytes, code: str, label: str) -> None:
    """A client would not learn what is wrong with its URL."""
    found, counted_as = TARGETS.find(method, target)
    assert not isinstance(found, (FixedAnswer, Route))
    assert (found().code, counted_as) == (code, label)
    assert found() is not found()  # the headers of a problem are changed
