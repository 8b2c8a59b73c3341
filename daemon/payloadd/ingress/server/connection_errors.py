"""Decide whether a broken connection is a bug of ours or the effect of a client's input."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING, Final

from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterator

log = get_logger(__name__)

_LIBRARIES: Final = {"hypercorn", "h11", "h2", "hpack", "hyperframe", "priority", "wsproto"}


def log_broken_connection(group: ExceptionGroup[Exception]) -> None:
    """Log the errors that ended a connection, at level debug or error.

    Level debug: all errors come from Hypercorn or from a library below it. A client can cause
    those at will, for example with data for a stream that was answered early. Level error: at
    least one error comes from our own code. Errors of the request handlers do not reach this
    function: the app answers them with a 500.
    """
    if _LIBRARIES.issuperset(_origins(group)):
        log.debug("connection_broken", exc_info=group)
    else:
        log.error("connection_failed", exc_info=group)


def _origins(error: Exception, above: str = "payloadd") -> Iterator[str]:
    """Yield, for each exception of a group, the innermost package that it passed through.

    Only ``payloadd`` and the protocol libraries count. ``above`` is the package that the
    enclosing group passed through.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package == "payloadd" or package in _LIBRARIES:
            above = package
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            yield from _origins(inner, above)
    else:
        yield above
