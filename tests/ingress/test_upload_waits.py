"""``Prefer: wait`` as a client sees it, on both ways in."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.ingress import upload_waits
from payloadd.model.job import Batch, Job
from payloadd.pipeline.intake import Receipt
from tests.ingress.rig import COLLECTION, ID, SOON, Rig, post, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.ingress.tls_files import Files

_JSON: Final = "Content-Type: application/json"
_LONG: Final = post(COLLECTION, _JSON, "Prefer: wait=20")
_BATCH: Final = Batch([Job(1, ID, b"1\n", 1)], "dt=2026/a.ndjson", "none", sealed=True)


@asynccontextmanager
async def serving(**environ: Any) -> AsyncIterator[Rig]:  # noqa: ANN401 - as of running
    """Run the server; fail instead of hanging."""
    with trio.fail_after(60):
        async with running(**environ) as rig:
            yield rig


async def until_waiting(rig: Rig, count: int = 1) -> None:
    """Wait until so many requests wait for their upload."""
    while rig.intake.uploads.waiting != count:  # noqa: ASYNC110 - nothing reports it
        await trio.sleep(0.005)


@pytest.mark.usefixtures("each_way")
async def test_the_answer_is_201_with_the_keys_once_the_payloads_are_stored() -> None:
    """A client could not find its objects."""
    async with serving() as rig, rig.wire() as wire:
        await wire.send(_LONG)
        await until_waiting(rig)
        rig.intake.uploads.store(_BATCH)
        answer = await wire.answer()
        assert answer.status == 201
        assert answer.headers["preference-applied"] == "wait=20"
        assert answer.headers["content-type"] == "application/json"
        assert answer.document == {"id": str(ID), "accepted": 2, "objects": [_BATCH.key]}
        assert rig.counted(201) == 1
        await wire.send(post())  # the connection goes on
        assert (await wire.answer()).status == 202


@pytest.mark.usefixtures("each_way")
async def test_the_answer_is_202_after_the_seconds_that_the_client_has_named() -> None:
    """The client would give up before it gets the answer."""
    async with serving() as rig, rig.wire() as wire:
        began = trio.current_time()
        await wire.send(post(COLLECTION, _JSON, "Prefer: respond-async, wait=1"))
        answer = await wire.answer()
        assert 1 <= trio.current_time() - began < SOON
        assert (answer.status, answer.document) == (202, {"id": str(ID), "accepted": 2})
        assert "preference-applied" not in answer.headers
        assert rig.intake.uploads.jobs == {}


@pytest.mark.usefixtures("each_way")
async def test_request_timeout_bounds_the_wait() -> None:
    """Clients could keep connections for hours."""
    async with serving(REQUEST_TIMEOUT="400ms") as rig, rig.wire() as wire:
        await wire.send(_LONG)
        assert (await wire.answer()).status == 202
        await wire.send(_LONG)
        await until_waiting(rig)
        rig.intake.uploads.store(_BATCH)
        assert (await wire.answer()).headers["preference-applied"] == "wait=1"


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("prefer", ["wait=0", "wait=x", "respond-async", "return=minimal"])
async def test_other_preferences_do_not_wait(prefer: str) -> None:
    """The RFC asks to ignore what is not understood."""
    async with serving() as rig, rig.wire() as wire:
        await wire.send(post(COLLECTION, _JSON, f"Prefer: {prefer}"))
        assert (await wire.answer()).status == 202
        assert rig.intake.uploads.jobs == {}


@pytest.mark.usefixtures("each_way")
async def test_several_headers_are_one_list() -> None:
    """The preference would be lost behind another one."""
    async with serving() as rig, rig.wire() as wire:
        await wire.send(post(COLLECTION, _JSON, "Prefer: a=b", "prefer: wait=20"))
        await until_waiting(rig)
        rig.intake.uploads.store(_BATCH)
        assert (await wire.answer()).status == 201


@pytest.mark.usefixtures("each_way")
async def test_a_waiting_request_keeps_no_memory_of_its_body() -> None:
    """Waiting requests would use up MAX_REQUEST_BYTES, and others would be refused."""
    async with serving() as rig, rig.wire() as wire:
        await wire.send(post(b"[" + b"1" * 100_000 + b"]", _JSON, "Prefer: wait=20"))
        await until_waiting(rig)
        assert rig.submitter is not None
        assert rig.submitter.memory.used == 0
        rig.intake.uploads.store(_BATCH)
        assert (await wire.answer()).status == 201


@pytest.mark.usefixtures("each_way")
async def test_pipelined_requests_are_answered_in_their_order() -> None:
    """A client would take the second answer for the first."""
    async with serving() as rig, rig.wire() as wire:
        await wire.send(_LONG)
        await until_waiting(rig)
        await wire.send(post(b"[3]"))
        await wait_all_tasks_blocked(0.05)
        assert len(rig.intake.taken) == 1
        rig.intake.uploads.store(_BATCH)
        assert [(await wire.answer()).status for _ in range(2)] == [201, 202]


@pytest.mark.usefixtures("each_way")
async def test_a_waiting_request_outlives_the_idle_time() -> None:
    """The connection would be closed under the request."""
    async with serving(KEEPALIVE_TIMEOUT="200ms") as rig, rig.wire() as wire:
        await wire.send(post(COLLECTION, _JSON, "Prefer: wait=1"))
        assert (await wire.answer()).status == 202


@pytest.mark.usefixtures("each_way")
async def test_half_of_the_connections_may_wait() -> None:
    """Waiting clients would keep all others out."""
    async with (
        serving(MAX_CONNECTIONS="2") as rig,
        rig.wire() as first,
        rig.wire() as second,
    ):
        await first.send(_LONG)
        await until_waiting(rig)
        await second.send(_LONG)
        assert (await second.answer()).status == 202
        rig.intake.uploads.store(_BATCH)
        assert (await first.answer()).status == 201


@pytest.mark.usefixtures("by_hypercorn")
async def test_few_requests_wait_in_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes tens of KiB, and the places of HTTP/2 streams would all be taken."""
    monkeypatch.setattr(upload_waits, "_MOST_TASKS", 1)
    slow = post(COLLECTION, _JSON, "Prefer: a", "prefer: wait=20")
    async with serving() as rig, rig.wire() as first, rig.wire() as second:
        await first.send(slow)
        await until_waiting(rig)
        await second.send(slow)
        assert (await second.answer()).status == 202
        rig.intake.uploads.store(_BATCH)
        assert (await first.answer()).status == 201
        await second.send(slow)
        await until_waiting(rig)
        rig.intake.uploads.store(_BATCH)
        assert (await second.answer()).status == 201


@pytest.mark.usefixtures("each_way")
async def test_a_client_that_leaves_costs_nothing() -> None:
    """Its memory would never come back, or its answer would end the daemon."""
    async with serving() as rig:
        async with rig.wire() as wire:
            await wire.send(_LONG)
            await until_waiting(rig)
        await wait_all_tasks_blocked(0.05)
        rig.intake.uploads.store(_BATCH)
        await until_waiting(rig, 0)


async def test_a_client_that_leaves_frees_its_slot() -> None:
    """Clients that ask for a long wait and leave would keep all others out."""
    async with serving(max_connections=1) as rig:
        async with rig.wire() as wire:
            await wire.send(_LONG)
            await until_waiting(rig)
        await until_waiting(rig, 0)
        async with rig.wire() as wire:
            await wire.send(post())
            with trio.fail_after(SOON):
                assert (await wire.answer()).status == 202


async def test_a_client_that_ends_its_side_gets_the_202_at_once() -> None:
    """It cannot be told from a client that has left."""
    async with serving() as rig, rig.wire() as wire:
        await wire.send(_LONG)
        await until_waiting(rig)
        await wire.stream.send_eof()
        with trio.fail_after(SOON):
            assert (await wire.answer()).status == 202
            assert await wire.rest() == b""


async def test_a_client_that_resets_a_waiting_request_frees_its_slot() -> None:
    """As above."""
    async with serving(max_connections=1) as rig:
        async with rig.wire() as wire:
            await wire.send(_LONG, post())
            await until_waiting(rig)
            wire.stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1" + b"\0" * 7)
        await until_waiting(rig, 0)
        async with rig.wire() as wire:
            await wire.send(post())
            with trio.fail_after(SOON):
                assert (await wire.answer()).status == 202


async def test_a_client_of_tls_that_leaves_is_noticed_after_a_request_that_did_not_wait(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the first request would be taken for the state of the second one."""
    gate = trio.Event()
    async with files.running() as rig, files.wire(rig) as wire:
        assert rig.submitter is not None
        waits = rig.submitter.waits
        begin = waits.begin

        def begin_first(receipt: Receipt, _seconds: int, answer: Any) -> Any:  # noqa: ANN401 - as of begin
            monkeypatch.setattr(waits, "begin", begin)
            rig.intake.open = gate  # of the second request
            return begin(receipt, 0, answer)

        monkeypatch.setattr(waits, "begin", begin_first)
        await wire.send(_LONG[:-5])
        await wait_all_tasks_blocked(0.05)
        await wire.send(_LONG[-5:], _LONG)
        assert (await wire.answer()).status == 202
        await wait_all_tasks_blocked(0.05)
        rig.intake.uploads.watch(Receipt(ID, 1), 1, remembered=False)
        gate.set()
        await until_waiting(rig)
        stream: Any = wire.stream
        await stream.transport_stream.send_eof()
        with trio.fail_after(SOON):
            assert (await wire.answer()).status == 202


@pytest.mark.usefixtures("each_way")
async def test_a_drain_answers_the_requests_that_wait() -> None:
    """Clients would lose their connection without an answer."""
    async with serving() as rig, rig.wire() as first, rig.wire() as second:
        await first.send(_LONG)
        await until_waiting(rig)
        await second.send(_LONG)
        await until_waiting(rig, 2)
        rig.health.phase = "draining"
        rig.stop.set()
        await wait_all_tasks_blocked(0.05)
        rig.intake.uploads.store(_BATCH)
        for wire in (first, second):
            answer = await wire.answer()
            assert (answer.status, answer.headers["connection"]) == (201, "close")
            assert await wire.rest() == b""
        await rig.ended.wait()


@pytest.mark.usefixtures("each_way")
async def test_a_drain_without_the_upload_answers_202() -> None:
    """The drain would take as long as the client is patient."""
    async with serving() as rig, rig.wire() as wire:
        await wire.send(_LONG)
        await until_waiting(rig)
        rig.health.phase = "draining"
        rig.stop.set()
        rig.intake.uploads.wait_no_longer_than(0.1)
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (202, "close")
        assert await wire.rest() == b""


@pytest.mark.usefixtures("each_way")
async def test_a_page_of_another_origin_may_wait() -> None:
    """A browser would refuse the header, or hide it from the page."""
    origin = "https://a.b"
    async with serving(CORS_ORIGINS=origin) as rig, rig.client() as client:
        headers = {"Origin": origin, "Access-Control-Request-Headers": "prefer"}
        preflight = await client.options("/v1/payloads", headers=headers)
        assert "prefer" in preflight.headers["access-control-allow-headers"].split(", ")
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _store() -> None:
                await until_waiting(rig)
                rig.intake.uploads.store(_BATCH)

            answer = await client.post(
                "/v1/payloads",
                content=COLLECTION,
                headers={
                    "Origin": origin, "Prefer": "wait=20", "Content-Type": "application/json",
                },
            )  # fmt: skip
        assert (answer.status_code, answer.headers["preference-applied"]) == (201, "wait=20")
        assert "Preference-Applied" in answer.headers["access-control-expose-headers"]
        assert answer.headers["access-control-allow-origin"] == origin
