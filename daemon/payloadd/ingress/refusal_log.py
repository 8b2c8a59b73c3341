"""Log one line for each refused request, at a bounded rate.

A client whose requests are all refused keeps a log of its own, or none. Without these lines the
operator of the daemon would not see such clients. The rate is bounded for each code separately, so
a flood of one code hides no other code. The set of codes is fixed, which bounds the memory.
"""

from __future__ import annotations

import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from payloadd.ingress.client_address import without_mapping
from payloadd.observe.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket

    from payloadd.ingress.problem import Problem

log = get_logger(__name__)

_BURST: Final = 10
"""Lines of one code that may be written without a pause."""
_PER_SECOND: Final = 1.0
_MAX_TEXT: Final = 256
"""Characters of a text that the client chose."""
_MAX_DETAIL: Final = 512
_WRITING: Final = frozenset({None, "POST", "PUT"})
"""Methods of requests that may have carried payloads; None: the request was not parsed."""
_REQUEST_LINE: Final = re.compile(rb"\A([!-~]+) (?:(/[!-~]*)|[!-~]+) HTTP/")
_USER_AGENT: Final = re.compile(rb"(?i)\r\nuser-agent:([^\r\n]*)")


class Allowance:
    """A token bucket for the lines of one code, and the number of suppressed lines."""

    __slots__ = ("suppressed", "tokens", "updated")

    def __init__(self, now: float) -> None:
        self.tokens = float(_BURST)
        self.updated = now
        self.suppressed = 0

    def try_consume(self, now: float) -> bool:
        """Return whether a line may be written at ``now`` seconds, and count it."""
        self.tokens = min(_BURST, self.tokens + (now - self.updated) * _PER_SECOND)
        self.updated = now
        if self.tokens < 1:
            self.suppressed += 1
            return False
        self.tokens -= 1
        return True


class RefusalLog:
    """Writes the event ``request_refused``; ``clock`` returns monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._allowances: dict[str, Allowance] = {}

    def note(
        self,
        problem: Problem,
        client: str | None,
        user_agent: str | None = None,
        method: str | None = None,
        path: str | None = None,
    ) -> None:
        """Log that a request was answered with ``problem``; unknown values are None.

        ``suppressed`` counts the lines of this code that were left out since its last line.
        """
        now = self._clock()
        allowance = self._allowances.get(problem.code)
        if allowance is None:
            allowance = self._allowances[problem.code] = Allowance(now)
        if not allowance.try_consume(now):
            return
        known: dict[str, Any] = {
            "client": client,
            "user_agent": _shortened(user_agent),
            "method": _shortened(method),
            "path": _shortened(path),
        }
        write = log.warning if method in _WRITING else log.info
        write(
            "request_refused",
            status=problem.status,
            code=problem.code,
            detail=problem.detail[:_MAX_DETAIL],
            **{name: value for name, value in known.items() if value is not None},
            suppressed=allowance.suppressed,
        )
        allowance.suppressed = 0

    def finish(self) -> None:
        """Log how many lines of each code were suppressed since its last line."""
        for code, allowance in self._allowances.items():
            if allowance.suppressed:
                log.warning("refusals_suppressed", code=code, suppressed=allowance.suppressed)
                allowance.suppressed = 0


class RequestDescription(NamedTuple):
    """The parts of a request that are logged."""

    user_agent: str | None
    method: str | None
    path: str | None


def describe(head: bytes) -> RequestDescription:
    """Return the logged parts of a request that begins with ``head``; a body may follow."""
    head, _, _ = head.partition(b"\r\n\r\n")
    line = _REQUEST_LINE.match(head)
    method, target = (None, None) if line is None else line.groups()
    agent = _USER_AGENT.search(head)
    return RequestDescription(
        None if agent is None else agent[1].decode("latin-1").strip(" \t"),
        None if method is None else method.decode("ascii"),
        None if target is None else target.partition(b"?")[0].decode("ascii"),
    )


def address_of_client(connected: socket) -> str | None:
    """Return the address of the peer, ``unix`` for a Unix socket, None if the client is gone."""
    try:
        peer = connected.getpeername()
    except OSError:
        return None
    if not isinstance(peer, tuple):
        return "unix"
    address = str(peer[0])
    return without_mapping(address) if address.startswith("::ffff:") else address


def _shortened(text: str | None) -> str | None:
    """Return a text that the client chose, shortened."""
    if text is None:
        return None
    with suppress(UnicodeError):
        # Headers are decoded as Latin-1, but most clients send UTF-8.
        text = text.encode("latin-1").decode("utf-8")
    return text[:_MAX_TEXT]
