"""Watermarks: objects that say up to when everything that was accepted is stored.

Each stream has one of each process, ``_watermarks/{stream}/{host}-{process}.json``. What it says is
never ahead of the truth:

* A *mark* is a time that divides ids: all earlier ids are before it, all later ones are not. The
  ids of this run never go back (``AscendingIds``), and those of the next run begin at the highest
  watermark, which is durable before it is written (``watermark_file.py``).
* Two marks are made, with a wait between them until every request that began before the first one
  has its outcome. So jobs before the first mark have a lower ``seq`` than jobs behind the second.
* Once the job with the lowest ``seq`` that is neither stored nor dead, or another job of the same
  commit, is behind the second mark, all jobs before the first one are stored or dead: the first
  mark is the watermark. Jobs that an earlier run has left are before every mark.
* A process writes its watermarks before it accepts its first payload. After a drain that has stored
  everything they are ``closed``: a reader need not wait for this process. So the next start waits
  until the store has taken watermarks that are not closed.
"""

from __future__ import annotations

import re
import socket
from abc import ABC, abstractmethod
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import trio

from payloadd.errors import PayloaddError, StoreError
from payloadd.model.formats.api import EncodedObject, ObjectKind
from payloadd.model.job import AscendingIds
from payloadd.model.streams import first_seq
from payloadd.observe.logs import get_logger
from payloadd.pipeline.in_flight import InFlight

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from payloadd.config.settings import Settings
    from payloadd.observe.status import DeadLetterGroup
    from payloadd.pipeline.accounting import Accounting
    from payloadd.pipeline.watermark_file import Promise, WatermarkFile
    from payloadd.storage.api import Store

log = get_logger(__name__)

KIND: Final = ObjectKind("application/json", "watermark-1")
PERIOD: Final = 60.0
"""Seconds between two watermarks of a stream, at least."""
_REPORTS: Final = 10
"""Reports of the journal, one a second, for which a watermark may wait for the last uploads."""
_POLL: Final = 0.1
"""Seconds between two looks at whether the journal has reported."""
_MOST_MARKS: Final = 1024
_UPLOADS: Final = 8
"""Watermarks that are uploaded at the same time."""
_RETRY: Final = 2.0
"""Seconds between two attempts at what a start or a disk has to wait for."""
LAST_SECONDS: Final = 10.0
"""Seconds for the watermarks at the end of a drain."""
_WAITS: Final = "no payload is accepted before the store says that this process is not closed"


class Marks(NamedTuple):
    """Two times in milliseconds, the first mark and the second one."""

    first: int
    second: int


class StreamWatermarks(ABC):
    """The watermarks of some streams, which one process or one lane accepts payloads for."""

    def __init__(
        self,
        settings: Settings,
        promise: Promise,
        accounting: Accounting,
        dead_letters: Callable[[], Sequence[DeadLetterGroup]],
        store: Store,
        names: Mapping[int, str],
        in_flight: InFlight,
    ) -> None:
        """Go on from ``promise``, for the streams ``names`` of the journal, by number.

        ``dead_letters`` reads the journal in a thread.
        """
        self.period = PERIOD
        """Seconds between two watermarks of a stream."""
        self.in_flight = in_flight
        """Counts the requests, and gives them their ids."""
        self._process = promise.process
        self._earlier = promise
        self._accounting = accounting
        self._dead_letters = dead_letters
        self._store = store
        self._names = names
        self._timeout = settings.upload_timeout
        self._marks: deque[Marks] = deque()
        self._until = dict(promise.until)
        """By stream, the watermarks in milliseconds."""
        self._closed = False
        """Whether the store may lack watermarks that are not closed."""
        self._gone: dict[str, int] = {}
        """Those of streams that the journal does not know any more: all their jobs are stored."""
        self._dead: Mapping[str, int] = {}

    @abstractmethod
    async def _promise(self, *, closed: bool) -> None:
        """Make the watermarks durable before they are uploaded.

        ``closed``: the store may lack some of them, or some that say that nothing is accepted.
        """

    @abstractmethod
    def _has_jobs(self) -> bool:
        """Return whether jobs of earlier runs are neither stored nor dead."""

    async def _begin(self) -> None:
        """Write the watermarks of all streams that have none, or closed ones."""
        promise, names = self._earlier, set(self._names.values())
        mark = self.in_flight.ids.mark()
        self._gone = {one: self._until.pop(one) for one in promise.until if one not in names}
        left = {name for name in names if promise.closed or name not in promise.until}
        for name in left:
            # Without a job in the journal, all that was accepted before now is stored.
            self._until[name] = self._until.get(name, 0) if self._has_jobs() else mark
        # Until the store has them all, a start after a crash has to write them, too.
        self._closed = bool(left)
        await self._promise(closed=self._closed)
        while left:
            left -= await self._upload(dict.fromkeys(left, False))
            if left:
                log.warning("watermark_waits", streams=sorted(left)[:10], note=_WAITS)
                await trio.sleep(_RETRY)
        if self._closed:
            self._closed = False
            await self._promise(closed=False)

    async def _run(self) -> None:
        """Write all watermarks once in each period."""
        while True:
            began = trio.current_time()
            await trio.sleep_until(began + self.period)
            before = dict(self._until)
            await self._advance()
            if self._until != before:
                await self._promise(closed=self._closed)
            gone = dict.fromkeys(self._gone, True)
            stored = await self._upload(dict.fromkeys(self._until, False) | gone)
            if closed := stored.intersection(self._gone):
                for name in closed:
                    del self._gone[name]
                # A start that has such a stream again has to write that it is not closed.
                await self._promise(closed=self._closed)

    async def _advance(self) -> None:
        """Make marks, and raise the watermarks of all streams as far as they are stored."""
        ids = self.in_flight.ids
        first = ids.mark()
        await self.in_flight.wait_for_earlier()
        self._marks.append(Marks(first, ids.mark()))
        if len(self._marks) > _MOST_MARKS:
            # Watermarks that are hours behind rise in steps of two minutes instead of one.
            self._marks = deque(list(self._marks)[::2])
        await self._next_report()
        for _ in range(_REPORTS):
            oldest = await self._next_report()
            for number, name in self._names.items():
                self._until[name] = max(self._until[name], self._stored(number, oldest))
            if min(self._until.values()) >= first:
                break
        while self._marks and self._marks[0].first <= min(self._until.values()):
            self._marks.popleft()

    def _stored(self, stream: int, oldest: Mapping[int, tuple[int, int]]) -> int:
        """Return the time up to which a stream is stored, as the last marks tell; 0 if not."""
        if stream not in oldest:
            return self._marks[-1].first
        seq, accepted = oldest[stream]
        if seq <= self._newest_found(stream):
            return 0  # of an earlier run, whose ids may have any time
        return max([marks.first for marks in self._marks if marks.second <= accepted], default=0)

    def _newest_found(self, stream: int) -> int:
        """Return the ``seq`` up to which jobs of a stream are of earlier runs."""
        return self._accounting.newest_found.get(stream, first_seq(stream))

    async def _next_report(self) -> Mapping[int, tuple[int, int]]:
        """Return the next report of the journal.

        It may have been read before the call: the one behind it was not.
        """
        last = self._accounting.oldest_jobs.number
        while self._accounting.oldest_jobs.number == last:  # noqa: ASYNC110 - a hook would be called each second
            await trio.sleep(_POLL)
        return self._accounting.oldest_jobs.by_stream

    async def _upload(self, closed: Mapping[str, bool]) -> set[str]:
        """Upload the watermarks of streams, ``closed`` or not; return those that are stored.

        Those that are closed only with the present number of dead letters: none may follow them.
        """
        if not await self._count_dead():
            closed = {name: is_closed for name, is_closed in closed.items() if not is_closed}
        stored: set[str] = set()
        limiter = trio.CapacityLimiter(_UPLOADS)

        async def upload(name: str) -> None:
            async with limiter:
                with trio.move_on_after(self._timeout):
                    try:
                        await self._store.replace(*self._object(name, closed=closed[name]))
                    except StoreError as error:
                        log.warning("watermark_not_written", stream=name, reason=str(error))
                    else:
                        stored.add(name)

        async with trio.open_nursery() as nursery:
            for name in closed:
                nursery.start_soon(upload, name)
        return stored

    def _object(self, name: str, *, closed: bool) -> tuple[str, EncodedObject]:
        """Return the key and the body of the watermark of a stream."""
        until = (self._until | self._gone)[name]
        document = {
            "format": KIND.version,
            "stream": name,
            "process": self._process,
            "complete_until": _text(until),
            "dead": self._dead.get(name, 0),
            "closed": closed,
            "written_at": _text(self.in_flight.ids.now()),
        }
        key = f"_watermarks/{name}/{self._process}.json"
        return key, EncodedObject([msgspec.json.encode(document) + b"\n"], KIND)

    async def _count_dead(self) -> bool:
        """Count the dead letters; return whether the journal can be read."""
        try:
            groups = await trio.to_thread.run_sync(self._dead_letters)
        except PayloaddError as error:
            log.debug("dead_letters_not_read", reason=str(error))
            return False
        dead: dict[str, int] = {}
        for group in groups:
            dead[group.stream] = dead.get(group.stream, 0) + group.payloads
        self._dead = dead
        return True


def _text(milliseconds: int) -> str:
    """Return a time as RFC 3339 in UTC, such as ``2026-11-27T09:30:00.123Z``."""
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    """Cancel a scope once an event is set."""
    await event.wait()
    scope.cancel()


class Watermarks(StreamWatermarks):
    """The watermarks of one process with a journal in STATE_DIR."""

    def __init__(
        self,
        settings: Settings,
        file: WatermarkFile,
        accounting: Accounting,
        dead_letters: Callable[[], Sequence[DeadLetterGroup]],
        store: Store,
        names: Mapping[int, str],
        pulse: Callable[[], Awaitable[None]],
    ) -> None:
        """Go on from ``file``; see :class:`StreamWatermarks`. ``pulse`` is that of the journal."""
        promise = file.promise
        host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64]
        named = replace(promise, process=f"{host}-{promise.process}")
        in_flight = InFlight(AscendingIds(promise.floor))
        super().__init__(settings, named, accounting, dead_letters, store, names, in_flight)
        self._file = file
        self._pulse = pulse

    @asynccontextmanager
    async def written(self, stop: trio.Event) -> AsyncIterator[None]:
        """Write watermarks while the body runs, the first before it, the last behind it.

        The body accepts payloads, and ends when all are stored, or cannot be stored now. ``stop``
        ends the wait before it: the body must not accept payloads then.
        """
        async with trio.open_nursery() as beginning:
            beginning.start_soon(cancel_after, stop, beginning.cancel_scope)
            await self._begin()
            beginning.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run)
            yield
            nursery.cancel_scope.cancel()
        with trio.move_on_after(LAST_SECONDS):
            await self._finish()

    async def _finish(self) -> None:
        """Close the watermarks, if everything that was accepted is stored or dead."""
        await self._pulse()  # the last dead letters may wait for a commit
        if self._accounting.open or not self.in_flight.empty:
            return
        self._until = dict.fromkeys(self._names.values(), self.in_flight.ids.mark())
        await self._promise(closed=True)
        await self._upload(dict.fromkeys(self._until | self._gone, True))

    def _has_jobs(self) -> bool:
        return self._accounting.open > 0

    async def _promise(self, *, closed: bool) -> None:
        """Make the watermarks durable before they are uploaded. Waits while the disk fails."""
        while True:
            try:
                write = partial(self._file.write, self._until | self._gone, closed=closed)
                await trio.to_thread.run_sync(write)
            except OSError as error:
                log.warning("watermark_not_written", reason=str(error))
                await trio.sleep(_RETRY)
            else:
                return
