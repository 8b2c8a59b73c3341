"""The messages of a request on their way to its app."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.ingress.server.request_tasks import RequestMessages, _run_app
from tests.ingress.rig import SOON


def body(data: bytes, *, more: bool = True) -> dict[str, Any]:
    """Return a message with a part of a body."""
    return {"type": "http.request", "body": data, "more_body": more}


END = body(b"", more=False)


async def test_a_message_waits_for_room_and_the_end_of_the_body_does_not(
    nursery: trio.Nursery,
) -> None:
    """A body would be in memory before its memory is acquired, or its end cost a task switch."""
    messages = RequestMessages()
    await messages.put(body(b"one"))
    nursery.start_soon(messages.put, body(b"two"))
    await wait_all_tasks_blocked()
    assert await messages.receive() == body(b"one")
    await wait_all_tasks_blocked()
    await messages.put(dict(END))
    assert messages.whole == b"two"
    assert await messages.receive() == body(b"two", more=False)


async def test_a_receiver_is_woken(nursery: trio.Nursery) -> None:
    """A request whose body comes later would wait for ever."""
    messages = RequestMessages()
    got: list[dict[str, Any]] = []

    async def receive() -> None:
        got.append(await messages.receive())

    nursery.start_soon(receive)
    await wait_all_tasks_blocked()
    await messages.put(dict(END))
    await wait_all_tasks_blocked()
    assert got == [END]


async def test_a_receiver_is_woken_once(nursery: trio.Nursery) -> None:
    """The next message would end the process: the task that has received does not wait."""
    messages = RequestMessages()
    nursery.start_soon(messages.receive)
    await wait_all_tasks_blocked()
    await messages.put(body(b"one"))
    await wait_all_tasks_blocked()
    await messages.put(body(b"two"))
    await wait_all_tasks_blocked()
    assert await messages.receive() == body(b"two")


async def test_a_whole_body_is_taken_without_its_message() -> None:
    """The app would receive the body once more."""
    messages = RequestMessages()
    await messages.put(body(b"one", more=False))
    assert messages.whole == b"one"
    messages.drop_whole()
    assert messages.whole is None


async def test_nothing_waits_for_an_app_that_has_ended() -> None:
    """A connection would read no frame any more, after an app that has failed."""
    messages, sent = RequestMessages(), list[object]()

    async def app(*_arguments: object) -> None:
        await trio.lowlevel.checkpoint()

    async def send(message: object) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(message)

    await _run_app(app, {}, messages, send)
    assert sent == [None]
    with trio.fail_after(SOON):
        for data in (b"one", b"two"):
            await messages.put(body(data))


async def test_a_cancelled_receiver_is_not_woken(nursery: trio.Nursery) -> None:
    """A timeout while the body is read would end the process."""
    messages = RequestMessages()
    with trio.move_on_after(0):
        await messages.receive()
    await messages.put(body(b"one"))
    assert messages.whole is None
    assert await messages.receive() == body(b"one")
    del nursery


@pytest.mark.parametrize("how", ["disconnect", "answer"])
async def test_nothing_waits_for_an_app_that_reads_no_more(how: str, nursery: trio.Nursery) -> None:
    """A connection would read no frame any more, not even one that opens its window."""
    messages = RequestMessages()
    await messages.put(body(b"one"))
    nursery.start_soon(messages.put, body(b"two"))
    await wait_all_tasks_blocked()
    if how == "disconnect":
        await messages.put({"type": "http.disconnect"})
    else:
        messages.drop_rest()
    assert messages.scope.cancel_called is (how == "disconnect")
    with trio.fail_after(SOON):
        await messages.put(body(b"three"))
        await messages.put(dict(END))
