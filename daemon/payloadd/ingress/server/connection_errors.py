"""Whose fault it is that a connection broke: ours, or that of a client by way of a library."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Final

from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

log = get_logger(__name__)

_LIBRARIES: Final = {"hypercorn", "h11", "h2", "hpack", "hyperframe", "priority", "wsproto"}


def log_broken_connection(group: ExceptionGroup[Exception]) -> None:
    """Log what ended a connection: at debug level where a client's nonsense can do it at will.

    Hypercorn and the libraries below it are not proof against that (data for a stream that
    was answered early, an answer to a request that broke off). Errors of our handlers do not
    come here: the app has answered them with a 500.
    """
    if _LIBRARIES.issuperset(_origins(group)):
        log.debug("connection_broken", exc_info=group)
    else:
        log.error("connection_failed", exc_info=group)


def _origins(error: Exception, above: str = "payloadd") -> Iterator[str]:
    """Yield which of us and the protocol libraries each exception of a group came out of last."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package == "payloadd" or package in _LIBRARIES:
            above = package
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            yield from _origins(inner, above)
    else:
        yield above
