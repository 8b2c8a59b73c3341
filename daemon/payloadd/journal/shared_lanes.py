"""The lanes of a shared journal, and what their watermarks say in the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Marked = Literal["open", "opening", "closing", "closed", "retired"]
"""Whether the watermarks in the store say that no payload is accepted in the lane any more:

* "open": they do not. A lane begins so, without watermarks.
* "opening": perhaps; a start has to write that they are open before it accepts a payload.
* "closing": perhaps; a process has asked the store for it. If that process is lost, the store may
  still do it at any time, so requests never go into the lane again.
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


class HeldLane(Protocol):
    """A lane of a shared journal that this process holds."""

    @property
    def number(self) -> int:
        """The number of the lane in the journal."""
        ...

    @property
    def promise(self) -> LanePromise:
        """What its watermarks say in the store."""
        ...

    @property
    def jobs(self) -> int:
        """The jobs that are neither stored nor dead."""
        ...

    @property
    def is_empty(self) -> bool:
        """Whether all jobs are stored or dead, and the journal has that durably."""
        ...

    @property
    def found(self) -> Mapping[int, int]:
        """The newest ``seq`` of former owners, by stream, also of jobs that have left the lane."""
        ...


LaneT = TypeVar("LaneT", bound=HeldLane)


class SharedLanes(Protocol[LaneT]):
    """The held lanes of a shared journal, for the watermarks of each.

    No request is accepted before ``open``, and none with a time of acceptance that is before the
    promise of the lane.
    """

    @property
    def name(self) -> str:
        """What tells this journal from all others, in eight hex digits."""
        ...

    @property
    def own(self) -> LaneT | None:
        """The lane that requests go into; None while another one is got."""
        ...

    async def wait_for_change(self) -> None:
        """Return once the own lane may be another one."""
        ...

    def names(self, lane: LaneT) -> Mapping[int, str]:
        """Return the streams whose watermarks a lane has, by the numbers of the pipeline."""
        ...

    async def promise(self, lane: LaneT, until: Mapping[str, int], marked: Marked) -> bool:
        """Make durable what the watermarks of a lane say; return False if the lane is lost."""
        ...

    def open(self, lane: LaneT) -> None:
        """Let requests go into the own lane: its watermarks in the store are open."""
        ...

    def unclosed(self) -> Sequence[LaneT]:
        """Return the lanes of former owners of which all is stored, and that have to be closed.

        They are given back once they are.
        """
        ...
