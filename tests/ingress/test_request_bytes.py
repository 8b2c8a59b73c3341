"""MAX_REQUEST_BYTES as clients see it, on the fast path and through Hypercorn."""

from __future__ import annotations

import gc
import gzip
import os
import socket
import struct
import sys
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
import zstandard
from trio.testing import wait_all_tasks_blocked

from payloadd.ingress.fastpath.fast_path import FastPath
from payloadd.ingress.problem import Problem
from payloadd.ingress.refusal_log import RefusalLog
from payloadd.ingress.submission import PostHeaders
from payloadd.ingress.waiting_submission import do_nothing, submit_and_wait
from tests.ingress.rig import SOON, Rig, Wire, post, running

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from payloadd.ingress.request_memory import RequestMemory

SIZE = 600_000
BODY = b'{"payloads":["' + b"x" * (SIZE - 17) + b'"]}'
limited = partial(running, MAX_LENGTH="1MB", MAX_REQUEST_BYTES="1MB")


def chunked(body: bytes) -> bytes:
    """Return a whole request without a Content-Length."""
    head = b"POST /v1/payloads HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    chunks = b"".join(
        b"%x\r\n%s\r\n" % (len(piece), piece)
        for piece in (body[start : start + 50_000] for start in range(0, len(body), 50_000))
    )
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


def twice(body: bytes) -> bytes:
    """Return a whole request with a header twice, which leaves the fast path."""
    return post(body, "Content-Type: application/json", "X-A: 1", "X-A: 2")


def used(rig: Rig) -> int:
    """Return the bytes in use."""
    return memory_of(rig).used


def memory_of(rig: Rig) -> RequestMemory:
    """Return the memory of the server's requests."""
    assert rig.submitter is not None
    return rig.submitter.memory


async def until_used(rig: Rig, size: int) -> None:
    """Wait until exactly ``size`` bytes are in use."""
    with trio.fail_after(SOON):
        while used(rig) != size:  # noqa: ASYNC110 - there is no event for it
            await trio.sleep(0.01)


async def reset(wire: Wire) -> None:
    """Close the connection with a reset, as the system does for a process that crashes."""
    wire.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await wire.stream.aclose()


WAYS = pytest.mark.parametrize("request_of", [post, twice, chunked])


@WAYS
async def test_a_request_waits_until_there_is_memory(request_of: Callable[[bytes], bytes]) -> None:
    """Otherwise two large requests would be in memory together, or one be refused."""
    async with limited() as rig, rig.wire() as first, rig.wire() as second:
        request = request_of(BODY)
        await first.send(post(BODY)[:-5])
        await until_used(rig, SIZE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second.send, request)
            await wait_all_tasks_blocked(0.05)
            assert used(rig) <= 10**6
            assert rig.intake.taken == []
            await first.send(post(BODY)[-5:])
            assert (await first.answer()).status == 202
            assert (await second.answer()).status == 202
        assert len(rig.intake.taken) == 2
        await until_used(rig, 0)


@WAYS
async def test_a_request_that_waits_too_long_is_refused_with_busy(
    request_of: Callable[[bytes], bytes],
) -> None:
    """Otherwise a client would wait for ever, or lose its connection without an answer."""
    async with limited() as rig, rig.wire() as first, rig.wire() as second:
        memory_of(rig).max_wait = 0.3
        memory_of(rig).grace = 60
        await first.send(post(BODY)[:-5])
        await until_used(rig, SIZE)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with suppress(trio.BrokenResourceError):
                    await second.send(request_of(BODY))

            nursery.start_soon(send)
            answer = await second.answer()
            nursery.cancel_scope.cancel()
        assert (answer.status, answer.document["code"]) == (503, "BUSY")
        assert 2 <= int(answer.headers["retry-after"]) <= 3
        await first.send(post(BODY)[-5:])
        assert (await first.answer()).status == 202
        await until_used(rig, 0)


@pytest.mark.parametrize("slow", [post, twice])
async def test_a_slow_sender_is_refused_for_a_waiting_request(
    slow: Callable[[bytes], bytes],
) -> None:
    """Otherwise one client that sends nothing would keep all others from sending large bodies."""
    async with limited() as rig, rig.wire() as first, rig.wire() as second:
        memory_of(rig).grace = 0.1
        await first.send(slow(BODY)[:500])
        await until_used(rig, SIZE)
        await second.send(post(BODY))
        assert (await second.answer()).status == 202
        answer = await first.answer()
        assert (answer.status, answer.document["code"]) == (503, "BUSY")
        assert answer.headers["connection"] == "close"


async def test_small_requests_are_accepted_while_large_ones_wait() -> None:
    """Otherwise one client with large requests would keep out all others."""
    async with limited() as rig, rig.wire() as first, rig.wire() as small:
        await first.send(post(BODY)[:-5])
        await until_used(rig, SIZE)
        for _ in range(3):
            await small.send(post())
            assert (await small.answer()).status == 202


@pytest.mark.parametrize("cut", [100, 300_000])
async def test_an_incomplete_body_leaks_no_memory(cut: int) -> None:
    """Otherwise clients that close within a body would use up the memory."""
    async with limited() as rig:
        for _ in range(5):
            async with rig.wire() as wire:
                await wire.send(post(BODY)[:cut])
                await wait_all_tasks_blocked()
        async with rig.wire() as wire:
            await wire.send(post(BODY)[:cut])
            await wire.stream.send_eof()
            answer = await wire.answer()
            assert (answer.status, answer.document["code"]) == (400, "MALFORMED")
            assert await wire.rest() == b""
        await until_used(rig, 0)
        assert rig.intake.taken == []


@WAYS
async def test_a_reset_within_a_body_leaks_no_memory(
    request_of: Callable[[bytes], bytes],
) -> None:
    """Otherwise clients that crash within a body would use up the memory."""
    async with limited() as rig:
        for _ in range(3):
            async with rig.wire() as wire:
                await wire.send(request_of(BODY)[:300_000])
                with trio.fail_after(SOON):
                    while not used(rig):  # noqa: ASYNC110 - there is no event for it
                        await trio.sleep(0.01)
                await reset(wire)
            await until_used(rig, 0)
        assert rig.intake.taken == []


@pytest.mark.parametrize(
    ("coding", "pack"), [("gzip", gzip.compress), ("zstd", zstandard.compress)]
)
async def test_decompressed_bytes_count(coding: str, pack: Callable[[bytes], bytes]) -> None:
    """Otherwise many small bodies that decompress to megabytes would fill the memory."""
    headers = ("Content-Type: application/json", f"Content-Encoding: {coding}")
    async with limited() as rig, rig.wire() as wire:
        rig.intake.open = trio.Event()
        await wire.send(post(pack(BODY), *headers))
        await until_used(rig, len(BODY) - len(b'{"payloads":[]}') + len(b"\n"))
        rig.intake.open.set()
        assert (await wire.answer()).status == 202
        await until_used(rig, 0)


async def test_complete_bodies_that_are_refused_release_their_memory_once() -> None:
    """Otherwise a few clients with wrong bodies would use up the memory until a restart."""
    wrong = b'{"payloads":[' + b"x" * 50_000
    async with limited() as rig, AsyncExitStack() as stack:
        assert memory_of(rig).try_acquire(10**6)
        wires = [await stack.enter_async_context(rig.wire()) for _ in range(12)]
        for wire in wires:
            await wire.send(post(wrong))
        await wait_all_tasks_blocked(0.05)
        memory_of(rig).release(10**6)
        for wire in wires:
            assert (await wire.answer()).status == 400
        assert used(rig) == 0


async def test_bodies_that_waited_are_decoded_in_separate_passes() -> None:
    """Otherwise hundreds of bodies would be decoded in one pass, while all other clients wait."""
    body = b'{"payloads":["' + b"x" * 50_000 + b'"]}'
    async with limited() as rig, AsyncExitStack() as stack:
        assert memory_of(rig).try_acquire(10**6)
        wires = [await stack.enter_async_context(rig.wire()) for _ in range(12)]
        for wire in wires:
            await wire.send(post(body))
        await wait_all_tasks_blocked(0.05)
        memory_of(rig).release(10**6)
        assert rig.intake.taken == []
        for wire in wires:
            assert (await wire.answer()).status == 202
        assert used(rig) == 0


@pytest.mark.parametrize("request_of", [post, chunked])
async def test_connections_that_wait_for_memory_hold_little(
    request_of: Callable[[bytes], bytes],
) -> None:
    """Otherwise ten thousand of them would hold a gigabyte that no bound counts."""
    async with limited() as rig, AsyncExitStack() as stack:
        memory = memory_of(rig)
        assert memory.try_acquire(10**6)
        wires = [await stack.enter_async_context(rig.wire()) for _ in range(30)]
        for wire in wires:
            # As much of the request as the socket takes.
            assert os.write(wire.stream.socket.fileno(), request_of(BODY)) > 50_000
        await wait_all_tasks_blocked(0.05)
        assert len(memory._waiting) == 30
        # The first one did not know that there is too little memory.
        assert 0 < rig.metrics.requests.body_bytes <= 120 * 2**10 + 29 * 8 * 2**10
        memory.max_wait = 0.0
        memory.release(10**6)


async def test_a_client_that_leaves_after_its_grant_leaks_no_memory() -> None:
    """Otherwise its memory would be lost, or its request be continued after its end."""
    body = b'{"payloads":["' + b"x" * 50_000 + b'"]}'
    async with limited() as rig:
        assert memory_of(rig).try_acquire(10**6)
        async with rig.wire() as wire:
            await wire.send(post(body))
            await wait_all_tasks_blocked(0.05)
        memory_of(rig).release(10**6)
        await until_used(rig, 0)


@pytest.mark.parametrize("payloads", [2, 5000], ids=["decoded in the loop", "decoded elsewhere"])
async def test_a_request_without_its_client_keeps_its_memory_until_it_ends(
    payloads: int,
) -> None:
    """Otherwise clients that reset requests would fill the memory with uncounted bodies."""
    body = b"1\n" * payloads
    async with limited() as rig, rig.wire() as wire:
        rig.intake.open = trio.Event()
        head = b"POST /v1/payloads HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n"
        await wire.send(head + b"X-A: 1\r\nX-A: 2\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        with trio.fail_after(SOON):
            await rig.intake.asked.wait()
        await reset(wire)
        await wait_all_tasks_blocked(0.1)
        assert used(rig) == len(body)
        rig.intake.open.set()
        await until_used(rig, 0)
        assert len(rig.intake.taken) == 1


def hold_decoding(rig: Rig) -> trio.Event:
    """Let large bodies wait before they are decoded, until the event that is returned is set."""
    assert rig.submitter is not None
    gate = trio.Event()
    rig.submitter.large_bodies._wait_for_memory = gate.wait
    return gate


async def test_a_body_whose_client_left_before_it_was_decoded_is_dropped() -> None:
    """Clients that send large bodies and leave would use memory and process for minutes."""
    async with limited() as rig, rig.wire() as wire:
        gate = hold_decoding(rig)
        await wire.send(post(BODY))
        await until_used(rig, SIZE)
        await wait_all_tasks_blocked(0.1)
        await reset(wire)
        gate.set()
        await until_used(rig, 0)
        assert rig.intake.taken == []


async def test_a_body_whose_client_only_ended_its_side_is_decoded() -> None:
    """A client that sends one request and closes its side waits for the answer."""
    async with limited() as rig, rig.wire() as wire:
        gate = hold_decoding(rig)
        await wire.send(post(BODY))
        await until_used(rig, SIZE)
        await wire.stream.send_eof()
        await wait_all_tasks_blocked(0.1)
        gate.set()
        assert (await wire.answer()).status == 202


async def test_a_body_of_a_cancelled_request_is_dropped() -> None:
    """The same over HTTP/2, where a request ends and its connection does not."""
    async with limited() as rig:
        gate = hold_decoding(rig)
        assert rig.submitter is not None
        headers = PostHeaders("application/json", None, None)
        async with trio.open_nursery() as requests:
            requests.start_soon(
                submit_and_wait, rig.submitter, headers, BODY, lambda: None, None, do_nothing
            )
            await wait_all_tasks_blocked()
            requests.cancel_scope.cancel()
        assert used(rig) == SIZE
        gate.set()
        await until_used(rig, 0)
        assert rig.intake.taken == []


async def test_a_grant_after_the_end_of_the_fast_path_writes_to_no_file(
    tmp_path: Path,
) -> None:
    """Otherwise eight bytes would be written to the file that reuses the closed descriptor."""
    async with limited() as rig:
        assert rig.submitter is not None
        fast_path = FastPath(rig.submitter, rig.health, rig.metrics, RefusalLog(), b"{}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fast_path.run)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        files = [(tmp_path / str(number)).open("wb") for number in range(8)]
        fast_path.call_soon(lambda: None)
        sizes = [os.fstat(file.fileno()).st_size for file in files]
        for file in files:
            file.close()
        assert sizes == [0] * 8


@pytest.mark.parametrize(
    "wrong", [b"x", b"\xff", b""], ids=["no JSON", "no UTF-8", "no collection"]
)
@pytest.mark.parametrize("length", [100_000, SIZE], ids=["loop", "process"])
async def test_a_refused_body_is_freed_at_once(wrong: bytes, length: int) -> None:
    """Otherwise refused bodies would take hundreds of MiB before a garbage collection."""
    body = b'{"another":["' + b"x" * length + b'"]}' + wrong
    async with limited() as rig:
        assert rig.submitter is not None
        headers = PostHeaders("application/json", None, None)
        before = sys.getrefcount(body)
        gc.disable()
        try:
            if length < SIZE:
                with suppress(Problem):
                    rig.submitter.submit(
                        headers, body, 0, lambda _: None, lambda: None, None, lambda: False
                    )
                assert sys.getrefcount(body) == before
            with suppress(Problem):
                await submit_and_wait(rig.submitter, headers, body, lambda: None, None, do_nothing)
            await wait_all_tasks_blocked(0.01)
            assert sys.getrefcount(body) == before
        finally:
            gc.enable()
