"""The public address, tested by a real client over real sockets."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest
import trio
import zstandard
from werkzeug.exceptions import BadRequest

from payloadd.errors import RefusedError, TooLargeError
from payloadd.ingress import api
from tests.ingress import rig as rigs
from tests.ingress.rig import COLLECTION, ID, SOON, post, running

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    import httpx
    from hypercorn.trio.tcp_server import TCPServer
    from quart import Response

    from tests.ingress.rig import Answer

pytestmark = pytest.mark.usefixtures("each_way")

JSON = {"Content-Type": "application/json"}
HEAD = b"POST /v1/payloads HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
UPGRADE = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"


def check_problem(answer: httpx.Response | Answer, status: int, code: str) -> None:
    """Check that an answer is the documented problem+json."""
    document = json.loads(answer.content if hasattr(answer, "content") else answer.body)
    seen = answer.status_code if hasattr(answer, "status_code") else answer.status
    assert (seen, document["status"], document["code"]) == (status, status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "detail"} <= document.keys()
    assert document["type"] == "urn:payloadd:problem:" + code.lower().replace("_", "-")


@pytest.mark.parametrize(
    ("headers", "body", "payloads"),
    [
        (JSON, COLLECTION, [b"1", b'"two"']),
        (JSON, b'{"data": [{"a":\n1}]}', [b'{"a":1}']),
        ({"Content-Type": "application/x-ndjson"}, b'1\n{"a": 2}\n', [b"1", b'{"a": 2}']),
        (
            {**JSON, "Content-Encoding": "gzip"},
            gzip.compress(COLLECTION, mtime=0),
            [b"1", b'"two"'],
        ),
        ({**JSON, "Content-Encoding": "zstd"}, zstandard.compress(COLLECTION), [b"1", b'"two"']),
        (JSON, b'{"payloads": []}', []),
    ],
)
async def test_a_collection_is_accepted(
    headers: dict[str, str], body: bytes, payloads: list[bytes]
) -> None:
    """The daemon's main task."""
    async with running() as rig, rig.client() as client:
        answer = await client.post("/v1/payloads", headers=headers, content=body)
        assert (answer.status_code, answer.headers["content-type"]) == (202, JSON["Content-Type"])
        assert answer.json() == {"id": str(ID), "accepted": len(payloads)}
        assert "server" not in answer.headers
        assert rig.intake.taken == [payloads]
        assert rig.counted(202) == 1


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        (JSON, b"[1, ", 400, "MALFORMED"),
        (JSON, b"[" * 50_000, 400, "MALFORMED"),
        ({**JSON, "Content-Encoding": "gzip"}, b"nonsense", 400, "MALFORMED"),
        (JSON, b'{"a":[1]}', 422, "NOT_A_COLLECTION"),
        ({}, COLLECTION, 415, "UNSUPPORTED_TYPE"),
        ({**JSON, "Content-Encoding": "br"}, COLLECTION, 415, "UNSUPPORTED_ENCODING"),
        (JSON, b"x" * 2000, 413, "TOO_LARGE"),
        (
            {**JSON, "Content-Encoding": "gzip"},
            gzip.compress(bytes(2000), mtime=0),
            413,
            "TOO_LARGE",
        ),
    ],
)
async def test_a_wrong_body_is_refused_with_its_reason(
    headers: dict[str, str], body: bytes, status: int, code: str
) -> None:
    """Otherwise a client could not know what to fix, or that the request was refused."""
    async with running(MAX_LENGTH="60000" if len(body) > 9999 else "1000") as rig:
        async with rig.client() as client:
            answer = await client.post("/v1/payloads", headers=headers, content=body)
            check_problem(answer, status, code)
            assert (await client.get("/healthz")).status_code == 200
        assert rig.counted(status) == 1
        assert rig.intake.taken == []


async def test_a_415_names_the_supported_types_and_encodings() -> None:
    """Otherwise a client that negotiates would not learn which formats are supported."""
    async with running() as rig, rig.client() as client:
        answer = await client.post("/v1/payloads", content=b"a=b")
        assert "application/x-ndjson" in answer.headers["accept-post"]
        answer = await client.post(
            "/v1/payloads", headers={**JSON, "Content-Encoding": "br"}, content=b"x"
        )
        assert answer.headers["accept-encoding"] == "gzip, zstd, deflate"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "NOT_FOUND"),
        ("POST", "/v1/payloads//", 404, "NOT_FOUND"),
        ("POST", "/v1/payloads/x", 404, "UNKNOWN_STREAM"),
        ("POST", "/v1/payloads/x/y", 404, "NOT_FOUND"),
        ("POST", "/v1/payloads/default%2F", 404, "NOT_FOUND"),
        ("POST", "/v1/payload%2fdefault", 404, "NOT_FOUND"),
        ("OPTIONS", "/v1/payloads%2Fdefault", 404, "NOT_FOUND"),
        ("POST", "//v1/payloads", 404, "NOT_FOUND"),
        ("POST", "/V1/payloads", 404, "NOT_FOUND"),
        ("GET", "/static/x", 404, "NOT_FOUND"),
        ("GET", "/metrics", 404, "NOT_FOUND"),
        ("GET", "/%00%ff", 404, "NOT_FOUND"),
        ("GET", "/v1/payloads", 405, "METHOD_NOT_ALLOWED"),
        ("DELETE", "/v1/payload/", 405, "METHOD_NOT_ALLOWED"),
        ("PATCH", "/v1/payload", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/v1/payloads/default", 405, "METHOD_NOT_ALLOWED"),
        ("BREW", "/v1/payloads", 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/healthz", 405, "METHOD_NOT_ALLOWED"),
    ],
)
async def test_other_paths_and_methods_are_problems(
    method: str, path: str, status: int, code: str
) -> None:
    """Otherwise the answer to a wrong URL would be a redirect, an HTML page or a 500."""
    async with running() as rig, rig.client() as client:
        answer = await client.request(method, path)
        check_problem(answer, status, code)
        if status == 405:
            allowed = "GET, HEAD, OPTIONS" if path == "/healthz" else "OPTIONS, POST, PUT"
            assert answer.headers["allow"] == allowed
            assert allowed in answer.json()["detail"]
        if code == "NOT_FOUND":
            assert "/v1/payloads/{stream}" in answer.json()["detail"]


@pytest.mark.parametrize(
    "path", ["/v1/payloads", "/v1/payload", "/v1/payload/", "/v1/payload/default", "/healthz"]
)
async def test_head_and_options_say_what_is_allowed(path: str) -> None:
    """Otherwise a proxy or a library that asks first would take the path for a wrong one."""
    async with running() as rig, rig.client() as client:
        answer = await client.options(path)
        assert (answer.status_code, answer.content) == (204, b"")
        allowed = "GET, HEAD, OPTIONS" if path == "/healthz" else "OPTIONS, POST, PUT"
        assert answer.headers["allow"] == allowed
        answer = await client.head(path)
        assert answer.content == b""
        assert answer.status_code == (200 if path == "/healthz" else 405)
        if path != "/healthz":
            assert answer.headers["allow"] == allowed


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest.mark.parametrize("slash", ["", "/"])
async def test_the_path_decides_between_a_collection_and_a_document(
    method: str, slash: str, handed_over: list[TCPServer]
) -> None:
    """Otherwise webhooks would be refused, or a collection be stored as one payload."""
    body = b'{"payloads":\n[1, 2]}'
    async with running() as rig, rig.client() as client:
        for path in ("/v1/payloads", "/v1/payload"):
            answer = await client.request(method, path + slash, headers=JSON, content=body)
            assert answer.status_code == 202
        assert rig.intake.taken == [[b"1", b"2"], [b'{"payloads":[1, 2]}']]
        assert len(handed_over) == (rig.fast_path is None)


async def test_a_large_document_is_one_payload() -> None:
    """Otherwise the process for large bodies would decode a document as a collection."""
    document = b'{"event":[%s1]}' % (b"1," * 400_000)
    async with running() as rig, rig.client() as client:
        answer = await client.post("/v1/payload", headers=JSON, content=document)
        assert answer.json()["accepted"] == 1
        assert rig.intake.taken == [[document]]


async def test_healthz_answers_get_and_head() -> None:
    """Otherwise a load balancer could not check whether the process works."""
    async with running() as rig, rig.client() as client:
        answer = await client.get("/healthz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        answer = await client.head("/healthz")
        assert (answer.status_code, answer.content) == (200, b"")


async def test_a_refusal_of_the_pipeline_is_a_503_with_retry_after() -> None:
    """Otherwise a client would not know whether and when to retry."""
    async with running() as rig, rig.client() as client:
        for code, wait in (("QUEUE_FULL", 7), ("JOURNAL_FULL", 0)):
            rig.intake.fault = RefusedError(code, "full", wait)
            answer = await client.post("/v1/payloads", headers=JSON, content=COLLECTION)
            check_problem(answer, 503, code)
            least = max(1, wait)
            assert least <= int(answer.headers["retry-after"]) <= 1.5 * least + 1
            assert "connection" not in answer.headers
        rig.intake.fault = TooLargeError("11 payloads; allowed are 10 (MAX_QUEUE)")
        answer = await client.post("/v1/payloads", headers=JSON, content=COLLECTION)
        check_problem(answer, 413, "TOO_LARGE")
        assert "MAX_QUEUE" in answer.json()["detail"]


@pytest.mark.parametrize("fault", [KeyError("bug"), ExceptionGroup("", [KeyError("bug")])])
async def test_a_bug_is_answered_with_500_and_logged(
    fault: Exception, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """Otherwise a bug would be silent, or end the connection or the daemon."""
    async with running() as rig, rig.client() as client:
        rig.intake.fault = fault
        answer = await client.post("/v1/payloads", headers=JSON, content=COLLECTION)
        check_problem(answer, 500, "INTERNAL")
        assert "bug" not in answer.json()["detail"].replace("this is a bug", "")
        rig.intake.fault = None
        answer = await client.post("/v1/payloads", headers=JSON, content=COLLECTION)
        assert answer.status_code == 202
    assert [line["event"] for line in log_lines] == ["request_failed", "request_refused"]


async def test_a_bug_in_another_handler_is_answered_with_500_and_logged(
    monkeypatch: pytest.MonkeyPatch, log_lines: list[MutableMapping[str, Any]]
) -> None:
    """Otherwise a bug on another path would be an HTML page without a log line."""

    async def crash() -> Response:
        raise KeyError("bug")

    monkeypatch.setattr(api, "healthz", crash)
    monkeypatch.setattr(rigs, "HAS_FAST_PATH", False)
    async with running() as rig, rig.client() as client:
        check_problem(await client.get("/healthz"), 500, "INTERNAL")
    assert [line["event"] for line in log_lines] == ["request_failed", "request_refused"]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT here:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://elsewhere/path HTTP/1.1\r\nHost: elsewhere\r\n\r\n",
        b"GET /?%ff=\xc3 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /%e2%82 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a b:99999\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: \xff\xfe\r\nCookie: \xff=;=\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        UPGRADE + b"Sec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n\r\n\x81\x05hello",
        UPGRADE + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Basic \xff\r\nRange: x\r\nDate: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
    ],
)
async def test_odd_requests_are_answered_without_a_500(request_bytes: bytes) -> None:
    """Otherwise a scanner would fill the log, or get an answer that is not problem+json."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(request_bytes)
        with trio.fail_after(SOON):
            answer = await wire.answer()
        assert answer.status in {400, 404, 405}
        check_problem(answer, answer.status, answer.document["code"])


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 20_000, b"G" * 20_000,
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        # Two lengths are a way to smuggle requests past a proxy (RFC 9112, section 6.3).
        post(b"0\r\n\r\n", "Content-Type: application/json", "Transfer-Encoding: chunked"),
    ],
)  # fmt: skip
async def test_input_that_is_not_http_is_malformed(request_bytes: bytes) -> None:
    """Otherwise a client that does not speak HTTP would get an empty answer."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(request_bytes)
        with trio.fail_after(SOON):
            check_problem(answer := await wire.answer(), 400, "MALFORMED")
            assert answer.headers["connection"] == "close"
            assert await wire.rest() == b""
        assert rig.intake.taken == []


async def test_several_content_types_are_refused() -> None:
    """Otherwise the first of two contradicting headers would be used."""
    async with running() as rig, rig.wire() as wire:
        kind = "Content-Type: application/json"
        await wire.send(post(COLLECTION, kind, "Content-Type: text/plain"))
        check_problem(await wire.answer(), 415, "UNSUPPORTED_TYPE")


async def test_an_error_of_quart_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise an error of the framework would be answered with an HTML page."""

    async def odd() -> Response:
        raise BadRequest("odd")

    monkeypatch.setattr(api, "healthz", odd)
    monkeypatch.setattr(rigs, "HAS_FAST_PATH", False)
    async with running() as rig, rig.client() as client:
        answer = await client.get("/healthz")
        check_problem(answer, 400, "MALFORMED")


async def test_a_draining_daemon_refuses_before_the_body_is_read() -> None:
    """Otherwise a client would upload the whole body in vain."""
    async with running() as rig, rig.wire() as wire:
        rig.intake.keeps = False
        rig.health.phase = "draining"
        rig.intake.says = RefusedError("DRAINING", "the daemon drains", 5)
        await wire.send(post()[:-5])
        answer = await wire.answer()
        check_problem(answer, 503, "DRAINING")
        assert 5 <= int(answer.headers["retry-after"]) <= 8
        assert answer.headers["connection"] == "close"
