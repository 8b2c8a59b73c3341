"""The log line of a refused request, on both paths."""

from __future__ import annotations

import socket
from collections import Counter
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import structlog
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from payloadd.config.parsers import UnixAddress
from payloadd.errors import RefusedError
from payloadd.ingress.problem import Problem
from payloadd.ingress.refusal_log import RefusalLog, address_of_client, describe
from tests.ingress.rig import COLLECTION, SOON, post, running

if TYPE_CHECKING:
    from collections.abc import MutableMapping
    from pathlib import Path

    from tests.ingress.conftest import Refusal

Lines = list["MutableMapping[str, Any]"]

JSON = "Content-Type: application/json"
AGENT = "User-Agent: shipper/1"
HEAD = b"POST /v1/payloads HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
WEBSOCKET = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)


def refused(lines: Lines) -> Lines:
    """Return the lines of refused requests."""
    return [line for line in lines if line["event"] == "request_refused"]


# --- each refused request is logged ------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (post(b"[1, ", JSON, AGENT), 400, "MALFORMED"),
        (post(b"{}", JSON, AGENT), 422, "NOT_A_COLLECTION"),
        (post(COLLECTION, "Content-Type: text/html", AGENT), 415, "UNSUPPORTED_TYPE"),
        (post(COLLECTION, JSON, "Content-Encoding: br", AGENT), 415, "UNSUPPORTED_ENCODING"),
        (post(b" " * 2000, JSON, AGENT), 413, "TOO_LARGE"),
        (post(COLLECTION, JSON, AGENT, path="/v1/playloads?token=x"), 404, "NOT_FOUND"),
        (post(COLLECTION, JSON, AGENT, path="/healthz"), 405, "METHOD_NOT_ALLOWED"),
    ],
)
@pytest.mark.usefixtures("each_way")
async def test_a_refused_request_is_one_log_line(
    log_lines: Lines, request_: bytes, status: int, code: str
) -> None:
    """Otherwise a shipper that loses all its payloads would leave no trace in the daemon's log."""
    async with running(MAX_LENGTH="1000") as rig, rig.wire() as wire:
        await wire.send(request_)
        answer = await wire.answer()
        assert (answer.status, answer.document["code"]) == (status, code)
        assert rig.counted(status) == 1
    (line,) = refused(log_lines)
    path = request_.split(b" ")[1].partition(b"?")[0].decode()
    assert line == {
        "event": "request_refused",
        "log_level": "warning",
        "status": status,
        "code": code,
        "detail": answer.document["detail"],
        "client": "127.0.0.1",
        "user_agent": "shipper/1",
        "method": "POST",
        "path": path,
        "suppressed": 0,
    }


@pytest.mark.parametrize("fault", ["at once", "after the commit"])
@pytest.mark.usefixtures("each_way")
async def test_a_503_is_logged(log_lines: Lines, fault: str) -> None:
    """Otherwise an operator would not see which clients have to keep their payloads."""
    async with running() as rig, rig.wire() as wire:
        error = RefusedError("JOURNAL_FULL", "JOURNAL_MAX_BYTES is reached", 7)
        if fault == "at once":
            rig.intake.fault = error
        else:
            rig.intake.late = error
        await wire.send(post(COLLECTION, JSON, AGENT))
        assert (await wire.answer()).status == 503
        assert rig.counted(503) == 1
    (line,) = refused(log_lines)
    assert line["log_level"] == "warning"
    assert (line["code"], line["user_agent"]) == ("JOURNAL_FULL", "shipper/1")


@pytest.mark.usefixtures("each_way")
async def test_a_request_without_memory_is_logged(log_lines: Lines) -> None:
    """Otherwise an operator would not see that MAX_REQUEST_BYTES is too small."""
    large = HEAD + b"User-Agent: shipper/1\r\nContent-Length: 900000\r\n\r\n{"
    async with (
        running(MAX_LENGTH="1000000", MAX_REQUEST_BYTES="1000000") as rig,
        rig.wire() as holder,
        rig.wire() as wire,
    ):
        assert rig.submitter is not None
        rig.submitter.memory.max_wait = 0.1
        await holder.send(large)
        await trio.testing.wait_all_tasks_blocked()
        await wire.send(large)
        with trio.fail_after(SOON):
            assert (await wire.answer()).document["code"] == "BUSY"
        await holder.stream.aclose()
        assert rig.counted(503) >= 1
    line = refused(log_lines)[0]
    assert (line["status"], line["code"], line["user_agent"]) == (503, "BUSY", "shipper/1")


async def test_an_incomplete_body_is_logged(log_lines: Lines) -> None:
    """Otherwise a network that cuts bodies off would look like a client that sends nothing."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(HEAD + b"User-Agent: shipper/1\r\nContent-Length: 22\r\n\r\n{")
        await wire.stream.send_eof()
        assert (await wire.answer()).status == 400
        assert rig.counted(400) == 1
    (line,) = refused(log_lines)
    assert (line["code"], line["user_agent"]) == ("MALFORMED", "shipper/1")


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    ("sent", "agent"),
    [
        (HEAD + b"User-Agent: shipper/1\r\nContent-Length: 22\r\n\r\n{", "shipper/1"),
        (HEAD, None),  # not even the head is complete
    ],
)
async def test_a_408_is_logged(log_lines: Lines, sent: bytes, agent: str | None) -> None:
    """Otherwise a network that drops packets would look like a client that sends nothing."""
    async with running(REQUEST_TIMEOUT="200ms") as rig, rig.wire() as wire:
        await wire.send(sent)
        assert (await wire.answer()).status == 408
        assert rig.counted(408) == 1
    (line,) = refused(log_lines)
    assert (line["code"], line["client"], line["log_level"]) == ("TIMEOUT", "127.0.0.1", "warning")
    assert line.get("user_agent") == agent


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01 TLS on the wrong port\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000, 400),
    ],
)
@pytest.mark.usefixtures("each_way")
async def test_a_request_that_never_reached_the_app_is_logged(
    log_lines: Lines, sent: bytes, status: int
) -> None:
    """Otherwise a client that uses TLS on the port without TLS would leave no trace."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(sent)
        assert (await wire.answer()).status == status
        assert rig.counted(status) == 1
    (line,) = refused(log_lines)
    assert (line["status"], line["client"], line["log_level"]) == (status, "127.0.0.1", "warning")


@pytest.mark.usefixtures("each_way")
async def test_a_refused_websocket_is_logged(log_lines: Lines) -> None:
    """Otherwise a client that waits for its WebSocket would leave no trace."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(WEBSOCKET)
        assert (await wire.answer()).status == 404
        assert rig.counted(404) == 1
    (line,) = refused(log_lines)
    assert (line["status"], line["client"], line["log_level"]) == (404, "127.0.0.1", "info")


async def test_a_request_cut_off_by_the_drain_is_logged(log_lines: Lines) -> None:
    """Otherwise payloads that a restart refused would be missing without a trace."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(HEAD)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.drain)
            assert (await wire.answer()).status == 503
        assert rig.counted(503) == 1
    (line,) = refused(log_lines)
    assert (line["code"], line["client"]) == ("DRAINING", "127.0.0.1")


async def test_a_client_on_a_unix_socket_is_logged_as_unix(
    log_lines: Lines, tmp_path: Path
) -> None:
    """Otherwise refused requests of a proxy would be logged with no client, or an odd one."""
    path = tmp_path / "socket"
    async with running(BIND=str(UnixAddress(str(path)))) as rig:
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            for url in ("/v1/payloads", "/nothing"):
                await client.post(url, content=b"{}", headers={"Content-Type": "application/json"})
        assert (rig.counted(422), rig.counted(404)) == (1, 1)
    assert [line["client"] for line in refused(log_lines)] == ["unix", "unix"]


async def test_a_refused_get_is_no_warning(log_lines: Lines) -> None:
    """Otherwise scanners would fill the log of operators that read only warnings."""
    async with running() as rig, rig.client() as client:
        await client.get("/wp-login.php")
    (line,) = refused(log_lines)
    assert line["log_level"] == "info"


@pytest.mark.usefixtures("each_way")
async def test_an_accepted_request_is_not_logged(log_lines: Lines) -> None:
    """Otherwise the log would grow with the traffic."""
    async with running() as rig, rig.wire() as wire:
        for _ in range(3):
            await wire.send(post())
            assert (await wire.answer()).status == 202
        assert rig.counted(202) == 3
    assert log_lines == []


@pytest.mark.usefixtures("each_way")
async def test_a_long_user_agent_is_shortened_and_decoded_as_utf8(log_lines: Lines) -> None:
    """Otherwise a client could write 16 KiB into the log with each request."""
    async with running() as rig, rig.wire() as wire:
        agent = "User-Agent: ü\x9b" + "x" * 2000
        await wire.send(post(b"{}", JSON).replace(b"Host", agent.encode() + b"\r\nHost"))
        assert (await wire.answer()).status == 422
    (line,) = refused(log_lines)
    assert line["user_agent"] == "ü\x9b" + "x" * 254


async def test_a_password_in_the_target_is_not_logged(log_lines: Lines) -> None:
    """Otherwise the password of a client that uses the daemon as a proxy would be in the log."""
    async with running() as rig, rig.wire() as wire:
        await wire.send(post(COLLECTION, JSON, path="http://user:pa/ss@here/v1/payloads"))
        assert (await wire.answer()).status in {400, 404}
    (line,) = refused(log_lines)
    assert "ss@" not in str(line)


# --- the rate ----------------------------------------------------------------------------------


@pytest.mark.no_cover
@pytest.mark.usefixtures("each_way")
async def test_a_flood_of_refusals_writes_few_lines(
    log_lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a client could fill the disk of the log with refused requests."""
    now = 0.0
    monkeypatch.setattr(RefusalLog.__init__, "__defaults__", (lambda: now,))
    async with running() as rig, rig.wire() as wire:
        for _ in range(10):
            await wire.send(post(b"{}") * 100)
            for _ in range(100):
                assert (await wire.answer()).status == 422
        now = 1.0
        await wire.send(post(b"{}") * 2)
        for _ in range(2):
            assert (await wire.answer()).status == 422
        assert rig.counted(422) == 1002
    lines = refused(log_lines)
    assert [line["suppressed"] for line in lines] == [0] * 10 + [990]


def test_a_flood_of_one_code_hides_no_other(refusals: list[Refusal]) -> None:
    """Otherwise the 404s of a scanner would hide that the journal is full."""
    log = RefusalLog(lambda: 0.0)
    with structlog.testing.capture_logs() as lines:
        for _ in range(1000):
            log.note(Problem("NOT_FOUND", "x"), "::1", method="GET")
        log.note(Problem("JOURNAL_FULL", "x"), "::1", method="POST")
        log.finish()
        log.finish()
    refusals.clear()
    assert Counter((line["event"], line["code"]) for line in lines) == {
        ("request_refused", "NOT_FOUND"): 10,
        ("request_refused", "JOURNAL_FULL"): 1,
        ("refusals_suppressed", "NOT_FOUND"): 1,
    }
    assert lines[-1]["suppressed"] == 990


@given(st.lists(st.floats(0, 30), max_size=200))
def test_written_and_suppressed_lines_are_all_refusals(pauses: list[float]) -> None:
    """Otherwise the log would not show how many requests were refused."""
    now = 0.0
    log = RefusalLog(lambda: now)
    with structlog.testing.capture_logs() as lines:
        for pause in pauses:
            now += pause
            log.note(Problem("TIMEOUT", "x"), None)
        log.finish()
    written = refused(lines)
    assert len(written) + sum(line["suppressed"] for line in lines) == len(pauses)
    assert len(written) <= 10 + now + 1e-6


# --- heads -------------------------------------------------------------------------------------


def test_describe_returns_user_agent_method_and_path() -> None:
    """Otherwise the log would name a wrong client program, or one from the payload."""
    head = b"PUT /a?token=x HTTP/1.1\r\nHost: x\r\nuSeR-aGeNt:\t curl/8 (x) \r\nX: y\r\n\r\n"
    assert describe(head) == ("curl/8 (x)", "PUT", "/a")
    assert describe(b"") == (None, None, None)
    assert describe(b"POST http://u:p@h/ HTTP/1.1\r\nX-User-Agent: a\r\n\r\n") == (
        None,
        "POST",
        None,
    )


@given(st.binary(max_size=300))
def test_any_head_can_be_described(head: bytes) -> None:
    """Otherwise a refused request would cause a 500 and end the connection."""
    describe(head)
    describe(b"POST / HTTP/1.1\r\nUser-Agent:" + head + b"\r\n\r\n")


# --- the address of the client ------------------------------------------------------------------


def test_a_socket_for_both_protocols_states_ipv4_addresses_as_such() -> None:
    """A client would have two limits on its rate, and two names in the log."""
    with socket.socket(socket.AF_INET6) as listening:
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listening.bind(("::ffff:127.0.0.1", 0))
        listening.listen()
        with socket.create_connection(("127.0.0.1", listening.getsockname()[1])):
            accepted, _ = listening.accept()
            with accepted:
                assert accepted.getpeername()[0] == "::ffff:127.0.0.1"
                assert address_of_client(accepted) == "127.0.0.1"
