"""What the watermarks of a lane of a shared journal say in the store."""

from __future__ import annotations

from typing import Literal, NamedTuple

Marked = Literal["open", "opening", "closing", "closed", "retired"]
"""Whether the watermarks in the store say that no payload is accepted in the lane any more:

* "open": they do not. A lane begins so, without watermarks.
* "opening": perhaps; a start has to write that they are open before it accepts a payload.
* "closing": perhaps, and a process that has asked the store for it may not know whether the store
  will still do it. Requests never go into the lane again.
* "closed": they do. Requests go into the lane again after they are open.
* "retired": they do, and requests never go into the lane again: it was "closing".
"""


class LanePromise(NamedTuple):
    """The watermarks that the store may have of a lane. It is durable before the store has them."""

    until: dict[str, int]
    """By the name of the stream: the time in milliseconds up to which everything is stored."""
    marked: Marked

    @property
    def floor(self) -> int:
        """The time in milliseconds before which no payload may be accepted in the lane."""
        return max(self.until.values(), default=0)

    @property
    def unclosed(self) -> bool:
        """Whether readers wait for the lane."""
        return bool(self.until) and self.marked in {"open", "opening", "closing"}


NO_PROMISE = LanePromise({}, "open")
"""That of a lane without watermarks."""
