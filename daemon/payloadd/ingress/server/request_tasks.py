"""Run the app for one request, and pass it the messages of its request.

Hypercorn's own task group makes a memory channel for each request, and waits until the app has
taken the message before the last one. Here the end of the body needs no message of its own, and the
task is cancelled when the client has left, so that no app needs a task that waits for that.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hypercorn.config import Config
    from hypercorn.trio.task_group import TaskGroup
    from hypercorn.typing import AppWrapper

Message = Any
"""A dictionary of ASGI."""


class RequestMessages:
    """The messages of a request that its app has not received yet: one at most, and the end."""

    __slots__ = ("_dropping", "_messages", "_reader", "_room", "scope")

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._reader: trio.lowlevel.Task | None = None
        self._room: trio.Event | None = None
        self._dropping = False
        """Whether the app receives no further message."""
        self.scope = trio.CancelScope()
        """The scope of the app."""

    async def put(self, message: Message) -> None:
        """Wait for room and add a message, or drop it if the app has begun to answer."""
        if message["type"] == "http.disconnect":
            self.end()
            return
        messages = self._messages
        if messages and not message["body"]:
            messages[-1]["more_body"] = message["more_body"]
            return
        while messages and not self._dropping:
            self._room = trio.Event()
            await self._room.wait()
        if self._dropping:
            return
        messages.append(message)
        if self._reader is not None:
            trio.lowlevel.reschedule(self._reader)
            self._reader = None

    async def receive(self) -> Message:
        """Wait for the next message and return it."""
        if not self._messages:
            self._reader = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abandon)
        message = self._messages.popleft()
        if self._room is not None:
            self._room.set()
            self._room = None
        return message

    @property
    def whole(self) -> bytes | None:
        """The body, if all of it has arrived in one message that is not received yet."""
        if self._messages and not self._messages[0]["more_body"]:
            body: bytes = self._messages[0]["body"]
            return body
        return None

    def drop_whole(self) -> None:
        """Drop the message that ``whole`` has returned."""
        self._messages.popleft()

    def drop_rest(self) -> None:
        """Drop all further messages: the app has begun to answer, and reads no more of the body.

        Otherwise a client that has to read the answer, but is still sending, would wait for ever.
        """
        self._dropping = True
        if self._room is not None:
            self._room.set()
            self._room = None

    def end(self) -> None:
        """Cancel the app, or note that it has ended."""
        self.scope.cancel()
        self.drop_rest()

    def _abandon(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._reader = None
        return trio.lowlevel.Abort.SUCCEEDED


class RequestTasks:
    """Starts the tasks of a Hypercorn protocol, instead of Hypercorn's own task group."""

    def __init__(self, group: TaskGroup, begin: Callable[[], object]) -> None:
        """Start tasks in ``group``; ``begin`` is called with each request.

        The app cannot call it: its task starts later, and the request has to count until then.
        """
        self._group = group
        self._begin = begin

    async def spawn_app(
        self,
        app: AppWrapper,
        _config: Config,
        scope: Any,  # noqa: ANN401 - ASGI's
        send: Callable[[Message | None], Awaitable[None]],
    ) -> Callable[[Message], Awaitable[None]]:
        """Start the app for a request; returns the function that passes it a message."""
        messages = RequestMessages()
        if scope["type"] == "http":
            self._begin()
            scope["state"]["messages"] = messages
        self._group.spawn(_run_app, app, scope, messages, send)
        return messages.put

    def spawn(self, function: Callable[..., Any], *arguments: Any) -> None:  # noqa: ANN401 - passed on
        """Start a task."""
        self._group.spawn(function, *arguments)


async def _run_app(
    app: Any,  # noqa: ANN401 - its type has callbacks into threads, which are not used
    scope: Any,  # noqa: ANN401
    messages: RequestMessages,
    send: Callable[[Message | None], Awaitable[None]],
) -> None:
    """Run the app, which raises no exceptions; Hypercorn answers 500 if it has sent no answer."""
    with messages.scope:
        await app(scope, messages.receive, send, None, None)
    messages.end()
    await send(None)
