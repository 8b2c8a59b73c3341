"""The arguments with which Hypercorn makes the protocol of a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hypercorn.config import Config
    from hypercorn.protocol import ProtocolWrapper
    from hypercorn.typing import AppWrapper, ConnectionState, TaskGroup, WorkerContext


class ProtocolParts(NamedTuple):
    """The arguments of Hypercorn's protocols, in their order."""

    app: AppWrapper
    config: Config
    context: WorkerContext
    task_group: TaskGroup
    connection_state: ConnectionState
    ssl: bool
    client: tuple[str, int] | None
    server: tuple[str, int] | None
    send: Callable[[Any], Awaitable[None]]


def parts_of(wrapper: ProtocolWrapper) -> ProtocolParts:
    """Return the arguments with which ``wrapper`` has made its protocol."""
    return ProtocolParts(
        wrapper.app,
        wrapper.config,
        wrapper.context,
        wrapper.task_group,
        wrapper.state,
        wrapper.ssl,
        wrapper.client,
        wrapper.server,
        wrapper.send,
    )
