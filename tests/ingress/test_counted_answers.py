"""Each answer is counted once, with its route, whichever part of the daemon sends it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from payloadd.errors import RefusedError
from payloadd.ingress.routes import route_label
from tests.ingress.rig import COLLECTION, SOON, post, running

if TYPE_CHECKING:
    from tests.ingress.rig import Rig

TYPE = "Content-Type: application/json"
HEAD = b"POST /v1/payloads HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
both_ways = pytest.mark.usefixtures("each_way")


def counted(rig: Rig) -> Counter[tuple[int, str]]:
    """Return the number of answers by status and route."""
    counts: Counter[tuple[int, str]] = Counter()
    for family in rig.metrics.requests.collect():
        for sample in family.samples:
            if sample.name == "payloadd_requests_total" and sample.value:
                counts[int(sample.labels["code"]), sample.labels["route"]] += int(sample.value)
    return counts


def by_status(rig: Rig) -> Counter[int]:
    """Return the number of answers by status."""
    counts: Counter[int] = Counter()
    for (status, _), count in counted(rig).items():
        counts[status] += count
    return counts


def sample(rig: Rig, name: str) -> float | None:
    """Return the value of a metric without labels."""
    return rig.metrics.registry.get_sample_value(f"payloadd_{name}")


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/v1/payloads", "payloads"),
        ("/v1/payloads/", "payloads"),
        ("/v1/payloads/clicks", "payloads"),
        ("/v1/payload/a b/", "payload"),
        ("/v1/payload/a/b", "other"),
        ("/v1/payloadsx", "other"),
        ("/healthz", "healthz"),
        ("/healthz/", "healthz"),
        ("/readyz", "readyz"),
        ("/metrics", "metrics"),
        ("/openapi.json", "openapi"),
        ("/", "page"),
        ("/status.json", "page"),
        ("/page/page.js", "page"),
        ("*", "other"),
        ("", "page"),
        ("http://h/v1/payloads", "other"),
        ("/x\udcff\x9b", "other"),
    ],
)
def test_each_path_has_one_of_a_few_labels(path: str, label: str) -> None:
    """Clients could make any number of series, which fills the memory of Prometheus."""
    assert route_label(path) == label


@both_ways
@pytest.mark.parametrize("version", [1, 2])
async def test_answers_are_counted_with_their_route(version: int) -> None:
    """Probes would look like POSTs, and an alert on refused POSTs would count other paths."""
    paths = ("/v1/payloads", "/v1/payloads/clicks", "/v1/payload", "/v1/payload/clicks")
    async with running(STREAMS="clicks") as rig:
        headers = {"Content-Type": "application/json"}
        options = {"http1": version == 1, "http2": version == 2}
        async with rig.client(**options) as client:
            for path in paths:
                answer = await client.post(path, headers=headers, content=COLLECTION)
                assert (answer.status_code, answer.http_version) == (
                    202,
                    "HTTP/1.1" if version == 1 else "HTTP/2",
                )
            await client.post("/v1/payloads/unknown", headers=headers, content=COLLECTION)
            for path in ("/healthz", "/healthz", "/openapi.json", "/x", "/readyz"):
                await client.get(path)
            await client.get("/v1/payloads")
        assert counted(rig) == {
            (202, "payloads"): 2,
            (202, "payload"): 2,
            (404, "payloads"): 1,
            (200, "healthz"): 2,
            (200, "openapi"): 1,
            (404, "other"): 1,
            (404, "readyz"): 1,
            (405, "payloads"): 1,
        }
        # Requests with payloads alone.
        assert sample(rig, "request_seconds_count") == 6
        received = sample(rig, "request_bytes_total")
        # An unknown stream is refused by its head: its body need not be read.
        assert received in {4 * len(COLLECTION), 5 * len(COLLECTION)}


@both_ways
async def test_answers_of_hypercorn_are_counted_without_a_route(log_lines: object) -> None:
    """A route of an earlier request on the connection would have errors that it does not have."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(post())
        assert (await wire.answer()).status == 202
        await wire.send(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await wire.answer()).status == 200
        await wire.send(b"\x16\x03\x01 TLS\r\n\r\n")
        assert (await wire.answer()).status == 400
        assert counted(rig) == {(202, "payloads"): 1, (200, "healthz"): 1, (400, "other"): 1}


@both_ways
async def test_refused_requests_have_a_duration_and_bytes() -> None:
    """Slow refusals would not be seen, nor the bytes that they cost."""
    async with running(MAX_LENGTH="100kB") as rig, rig.client() as client:
        rig.intake.late = RefusedError("DISK_ERROR", "no", 1)
        answer = await client.post(
            "/v1/payloads", headers={"Content-Type": "application/json"}, content=COLLECTION
        )
        assert answer.status_code == 503
        answer = await client.post("/v1/payloads", content=b"{}", headers={"Content-Type": "a/b"})
        assert answer.status_code == 415
        assert counted(rig) == {(503, "payloads"): 1, (415, "payloads"): 1}
        assert sample(rig, "request_seconds_count") == 2


@both_ways
async def test_a_duration_is_that_of_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The latency would grow with the age of a connection, or never be more than zero."""
    now = [1000.0]
    for module in (
        "observe.request_metrics",
        "ingress.fastpath.connection",
        "ingress.server.hypercorn_app",
    ):
        monkeypatch.setattr(f"payloadd.{module}.perf_counter", lambda: now[0])
    async with running() as rig, rig.wire() as wire:
        for seconds in (0.03, 7.0):
            rig.intake.open = trio.Event()
            rig.intake.asked = trio.Event()
            await wire.send(post())
            await rig.intake.asked.wait()
            now[0] += seconds
            rig.intake.open.set()
            assert (await wire.answer()).status == 202
            now[0] += 500
        assert sample(rig, "request_seconds_sum") == pytest.approx(7.03)
        find = rig.metrics.registry.get_sample_value
        found = [
            find("payloadd_request_seconds_bucket", {"le": le}) for le in ("0.025", "0.05", "10.0")
        ]
        assert found == [0, 1, 2]


@both_ways
async def test_the_bytes_of_a_body_that_arrives_slowly_are_counted() -> None:
    """Traffic of large uploads would be missing."""
    body = b'{"payloads":["' + b"x" * 300_000 + b'"]}'
    async with running() as rig, rig.wire() as wire:
        whole = post(body)
        for start in range(0, len(whole), 100_000):
            await wire.send(whole[start : start + 100_000])
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert (await wire.answer()).status == 202
        assert sample(rig, "request_bytes_total") == len(body)


@both_ways
async def test_open_connections_are_shown() -> None:
    """An operator would not see that MAX_CONNECTIONS is near."""
    async with running() as rig:
        assert sample(rig, "connections") == 0
        async with rig.wire() as first, rig.wire() as second:
            for wire in (first, second):
                await wire.send(post())
                await wire.answer()
            assert sample(rig, "connections") == 2


CONVERSATIONS = [
    post(),
    post() * 3,
    post(b"{}") + post() + post(b"nonsense"),
    post(path="/v1/elsewhere"),
    post(COLLECTION, "Content-Type: text/html"),
    post(b" " * 2000),
    post(COLLECTION, "Content-Type: application/json", "Expect: 100-continue"),
    CHUNKED + b"16\r\n" + COLLECTION + b"\r\n0\r\n\r\n",
    CHUNKED + b"not a chunk\r\n\r\n",
    HEAD.replace(b"json", b"jason") + b"Transfer-Encoding: chunked\r\n\r\nnot a chunk\r\n\r\n",
    post() + b"\x00\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    b"HEAD /v1/payloads HTTP/1.1\r\nHost: x\r\n\r\n",
    b"HEAD /nothing HTTP/1.1\r\nHost: x\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /healthz HTTP/1.0\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000,
    HEAD,
    HEAD + b"Content-Length: 22\r\n\r\n{",
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
]


@pytest.mark.parametrize("sent", CONVERSATIONS)
@pytest.mark.parametrize("half_closes", [False, True])
@pytest.mark.usefixtures("each_way")
async def test_every_answer_is_counted_once(sent: bytes, half_closes: bool) -> None:  # noqa: FBT001
    """Otherwise the metric would show fewer refused requests than clients see, or more."""
    async with running(
        MAX_LENGTH="1000", REQUEST_TIMEOUT="300ms", KEEPALIVE_TIMEOUT="400ms"
    ) as rig:
        async with rig.wire() as wire:
            await wire.send(sent)
            if half_closes:
                await wire.stream.send_eof()
            with trio.fail_after(SOON):
                seen = await wire.rest()
        statuses = [
            int(line[9:12]) for line in seen.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")
        ]
        # The body of an answer and the first line of the next one are one line.
        statuses += [int(piece[:3]) for piece in seen.split(b"}HTTP/1.1 ")[1:]]
    received = Counter(status for status in statuses if status >= 200)
    assert by_status(rig) == received
    assert received or half_closes
