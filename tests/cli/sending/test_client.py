"""Posting with retries: what is repeated, what ends the run, and where it has to go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
import trio

from payloadd.cli.sending import client, cutting
from payloadd.cli.sending.client import FileSender, Place
from payloadd.cli.sending.files import InputFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trio.testing import MockClock

    Answer = Callable[[httpx.Request], httpx.Response]

URL = "http://daemon/v1/payloads"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make collections of two payloads, and read without threads.

    The virtual clock would jump while a thread reads.
    """

    async def call_now(call: Callable[[], object]) -> object:
        await trio.lowlevel.checkpoint()
        return call()

    monkeypatch.setattr(cutting, "MOST_PAYLOADS", 2)
    monkeypatch.setattr(client, "_in_thread", call_now)


class FakeDaemon:
    """Answer requests as ``answers`` say, by the first payload of each, else with a receipt."""

    def __init__(self, **answers: list[httpx.Response | Exception]) -> None:
        self.answers = answers
        self.bodies: list[bytes] = []
        self.times: list[float] = []
        self.keys: dict[bytes, set[str]] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        """Return the next answer to a request."""
        body = request.content
        self.bodies.append(body)
        self.times.append(trio.current_time())
        self.keys.setdefault(body, set()).add(request.headers["Idempotency-Key"])
        left = self.answers.get("l" + body.split(b"\n")[0].decode(), [])
        if left:
            answer = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(answer, Exception):
                raise answer
            return answer
        return receipt(body.count(b"\n"))


def receipt(payloads: int) -> httpx.Response:
    """Return the answer to an accepted request."""
    return httpx.Response(202, json={"id": "x", "accepted": payloads})


def problem(status: int, code: str, detail: str = "why", **headers: str) -> httpx.Response:
    """Return a refusal."""
    return httpx.Response(status, json={"code": code, "detail": detail}, headers=headers)


async def run(
    daemon: FakeDaemon, path: Path, text: str, first: int = 1, *, requests: int = 1
) -> FileSender:
    """Send a file with this text; returns the sender after its end."""
    await trio.Path(path).write_text(text)
    async with httpx.AsyncClient(transport=httpx.MockTransport(daemon)) as http:
        sender = FileSender(http, URL, [InputFile.named(str(path))], first, requests, 60.0)
        await sender.run()
    return sender


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of the file to send."""
    return tmp_path / "file"


async def test_all_is_accepted(path: Path, autojump_clock: MockClock) -> None:
    """Each payload of the file is sent once, by several requests at a time."""
    daemon = FakeDaemon()
    sender = await run(daemon, path, "1\n2\n3\n4\n5\n", requests=3)
    assert (sender.accepted, sender.failure, sender.next_place) == (5, None, None)
    assert sorted(daemon.bodies) == [b"1\n2\n", b"3\n4\n", b"5\n"]
    assert sender.position == 10


async def test_temporary_refusals_are_repeated_with_one_key(
    path: Path, autojump_clock: MockClock
) -> None:
    """The sender waits as long as the daemon asks for, and else not for long."""
    busy: list[httpx.Response | Exception] = [
        problem(503, "BUSY", **{"Retry-After": "7"}),
        problem(429, "RATE_LIMITED", **{"Retry-After": "30"}),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("late"),
        receipt(2),
    ]
    daemon = FakeDaemon(l3=busy)
    sender = await run(daemon, path, "1\n2\n3\n4\n")
    assert (sender.accepted, sender.failure) == (4, None)
    assert len(daemon.keys[b"3\n4\n"]) == 1
    waits = [
        after - before for before, after in zip(daemon.times[1:], daemon.times[2:], strict=False)
    ]
    assert waits[0] >= 7
    assert waits[1] >= 30
    assert all(wait < 1 for wait in waits[2:])
    assert len(waits) == 4


async def test_the_sender_gives_up_after_its_time(path: Path, autojump_clock: MockClock) -> None:
    """A daemon that is full for ever must not hold the command for ever."""
    daemon = FakeDaemon(l3=[problem(503, "QUEUE_FULL")])
    sender = await run(daemon, path, "1\n2\n3\n4\n5\n")
    assert sender.accepted == 2
    assert sender.failure == (
        f"{path}, lines 3 to 4: 503 QUEUE_FULL: why; nothing was accepted for 60 s"
    )
    assert sender.next_place == Place(0, 3)
    assert 30 < daemon.times[-1] - daemon.times[0] < 60


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            problem(400, "MALFORMED", "line 2: bad"),
            "400 MALFORMED: line 2: bad (line 2 of this request is line 4 of the file)",
        ),
        (problem(401, "UNAUTHENTICATED"), "401 UNAUTHENTICATED: why"),
        (problem(502, "STORE_REFUSED"), "502 STORE_REFUSED: why"),
        (httpx.Response(404, text="<html>"), "404"),
    ],
)
async def test_a_final_refusal_ends_the_run_at_its_line(
    answer: httpx.Response, reason: str, path: Path, autojump_clock: MockClock
) -> None:
    """The message names the line of the file that has to be fixed."""
    daemon = FakeDaemon(l3=[answer])
    sender = await run(daemon, path, "1\n2\n3\n4\n5\n6\n7\n8\n9\n")
    assert sender.failure == f"{path}, lines 3 to 4: {reason}"
    assert sender.next_place == Place(0, 3)
    assert b"7\n8\n" not in daemon.bodies


async def test_a_success_that_is_no_receipt_ends_the_run(
    path: Path, autojump_clock: MockClock
) -> None:
    """Another server at the address must not look like a success."""
    sender = await run(FakeDaemon(l1=[httpx.Response(200, text="hello")]), path, "1\n")
    assert sender.failure == f"200 without a receipt: {URL} is no payloadd"
    assert sender.next_place == Place(0, 1)


async def test_a_collection_that_is_too_large_is_sent_in_halves(
    path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """A daemon with a small MAX_LENGTH takes the file too."""
    monkeypatch.setattr(cutting, "MOST_PAYLOADS", 10)

    class Strict(FakeDaemon):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            if len(request.content) > 6:
                return problem(413, "TOO_LARGE")
            return super().__call__(request)

    daemon = Strict()
    sender = await run(daemon, path, "1\n2\n3\n4\n5\n")
    assert daemon.bodies == [b"1\n2\n", b"3\n4\n5\n"]
    assert sender.accepted == 5

    sender = await run(daemon, path, "1\n2\n3\n4444444\n5\n")
    assert sender.failure == f"{path}, lines 4 to 4: 413 TOO_LARGE: why"
    assert sender.next_place == Place(0, 1)  # halves of accepted lines are known by their keys


async def test_other_requests_are_ended_before_the_run_ends(
    path: Path, autojump_clock: MockClock
) -> None:
    """A request that would be repeated for minutes must not delay the message."""
    daemon = FakeDaemon(l1=[problem(503, "BUSY")], l3=[problem(400, "MALFORMED", "bad")])
    sender = await run(daemon, path, "1\n2\n3\n4\n5\n", requests=2)
    assert sender.failure == f"{path}, lines 3 to 4: 400 MALFORMED: bad"
    assert sender.next_place == Place(0, 1)
    assert daemon.times[-1] - daemon.times[0] < 5


async def test_a_run_goes_on_from_a_line(path: Path, autojump_clock: MockClock) -> None:
    """Lines before it are not sent."""
    daemon = FakeDaemon()
    sender = await run(daemon, path, "1\n2\n3\n4\n5\n", 4)
    assert (sorted(daemon.bodies), sender.accepted) == ([b"4\n", b"5\n"], 2)


@pytest.mark.parametrize(
    ("text", "first", "failure"),
    [
        ("1\n2\n3\n", 4, None),
        ("1\n2\n3\n", 5, "events: it has 3 lines; --from-line 5 is behind its end"),
        ("[1, 2]", 4, "events: it has 2 elements; --from-line 4 is behind its end"),
        ("", 2, "events: it has 0 lines; --from-line 2 is behind its end"),
    ],
)
async def test_a_first_line_behind_the_end_is_an_error(
    path: Path, autojump_clock: MockClock, text: str, first: int, failure: str | None
) -> None:
    """A mistyped number would look as if everything was accepted."""
    daemon = FakeDaemon()
    sender = await run(daemon, path, text, first)
    assert (sender.accepted, daemon.bodies, sender.next_place) == (0, [], None)
    assert (sender.failure and sender.failure.replace(str(path), "events")) == failure


async def test_a_file_that_cannot_be_read_to_its_end_is_named(
    path: Path, autojump_clock: MockClock
) -> None:
    """What was read before is sent, and the message says where to go on."""
    sender = await run(FakeDaemon(), path, "[1, 2, 3, 4")
    assert sender.failure == f"{path}: the array ends within its element 4"
    assert sender.next_place == Place(0, 3)


async def test_blank_lines_are_not_sent(path: Path, autojump_clock: MockClock) -> None:
    """A part of blank lines is no request."""
    daemon = FakeDaemon()
    sender = await run(daemon, path, "\n\n\n\n1\n")
    assert daemon.bodies == [b"1\n"]
    assert sender.next_place is None
