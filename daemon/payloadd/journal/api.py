"""The journal: keep accepted jobs durable until the store has confirmed them.

The pipeline and the journals know this module; they do not know each other. A new journal
implements ``Journal``, calls a ``JournalListener``, is opened in ``open.py``, and passes
``tests/journal/test_contract.py``, which checks each of these promises.

The promises of a journal to the pipeline:

* **Numbers.** A job gets its ``seq`` when its request is committed; it contains the number of the
  request's stream (``payloadd.model.streams``). Within a stream later commits give higher numbers,
  and no number is given twice, not even after a restart. The jobs of one request have neighbouring
  numbers in the order of its payloads: the first and the last ``seq`` name all members of a batch,
  so a gap ends a batch. Jobs that are accepted one after the other in one run have neighbouring
  numbers, too, whatever other streams accept meanwhile.
* **Streams.** ``open_journal`` returns the numbers of the streams. A stream keeps its number for as
  long as the journal has jobs of it, also when the settings do not name it any more.
* **Whole requests.** A request is committed with all its jobs or with none.
* **Durable first.** The callback of a request and ``committed`` are called after the jobs are
  durable, from the event loop.
* **Offered once and in order.** Each job of this run reaches the pipeline once, within its stream
  in the order of ``seq``: with ``committed``, or with ``page`` where the pipeline had no capacity
  for it or ``left_for_page`` named it. Jobs of earlier runs are returned by ``sealed`` if their
  batch was sealed, else by ``page``.
* **Seals hold.** Once ``seal`` has returned, the members and the key of the batch survive a crash:
  the next run gets the same members under the same key from ``sealed``, until the batch is settled
  or buried, and so does this run once the pipeline has forgotten the batch. So an upload that is
  repeated replaces its object and does not make a second one.
* **Layouts.** The journal keeps the layout (key template, object format, ...) under which each job
  was accepted: ``open_journal`` returns those of all its jobs. So after a change of settings a
  batch that a crash has interrupted gets the same key again.
* **Dead letters stay.** A durable journal keeps the jobs of ``bury`` with the store's error until
  an operator drops them; ``open.inspect_journal`` lists them and marks them for a retry.
* **Failed writes end.** While the disk refuses writes, requests are refused whole, with an error
  that says so. Once the disk accepts writes again the journal accepts requests again, and what the
  pipeline has asked for meanwhile is carried out.
* **Keys.** An Idempotency-Key is known for 24 hours, over restarts too, and then no longer.
* **Nothing is forgotten early.** ``settle`` and ``bury`` are carried out in the order in which they
  were called, in one of the next commits. A crash before that commit brings the batch back.

A journal that is not durable (``durable`` is False) keeps these promises until the process ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from payloadd.errors import RefusedError
from payloadd.journal.fingerprint import fingerprint
from payloadd.journal.shared_lanes import HeldLane, LanePromise, Marked, SharedLanes
from payloadd.model.stored_objects import StoredObjects
from payloadd.model.streams import DEFAULT

if TYPE_CHECKING:
    import uuid
    from collections.abc import Collection, Mapping, Sequence

    from payloadd.model.job import Batch, Job, Part

__all__ = [
    "HeldLane",
    "Journal",
    "JournalListener",
    "LanePromise",
    "Marked",
    "OutcomeCallback",
    "Receipt",
    "SharedLanes",
    "StoreOutcome",
    "UnstoredRequests",
    "fingerprint",
]


@dataclass(frozen=True, slots=True)
class Receipt:
    """The answer to an accepted request: the id that names it and the number of its payloads."""

    id: uuid.UUID
    payloads: int


OutcomeCallback = Callable[[Receipt | RefusedError], None]
"""Called once, from the event loop, when a request is durable or cannot become durable.

It must not raise, and must return within microseconds: all requests of the commit wait for it.
"""


StoreOutcome = StoredObjects | RefusedError
"""The outcome of a request that waits for the store: its objects, or the error of its answer."""


class UnstoredRequests(Protocol):
    """The requests that are answered when the store has all of their payloads.

    Only ``DURABILITY=store`` has them: there the callback of ``Journal.append`` is called when the
    request is queued, and calls ``wait``.
    """

    given_up: Callable[[], object]
    """Called after requests were given up: their jobs are in memory for nothing."""

    def wait(self, done: Callable[[Receipt, StoreOutcome], object]) -> None:
        """Call ``done`` with the outcome of the request of which ``append`` passes the receipt.

        Its first argument is that receipt. Only the callback of ``append`` may call it. ``done`` is
        called once, before this returns if the outcome is known, and must not raise.
        """
        ...

    def wants(self, job: Job) -> bool:
        """Return whether the request of ``job`` waits for it: it is neither stored nor given up."""
        ...

    def wait_no_longer_than(self, seconds: float) -> None:
        """Give up all requests, also later ones, ``seconds`` from now: the daemon drains."""
        ...

    async def run(self) -> None:
        """Answer requests until cancelled."""
        ...


class Journal(Protocol):
    """Keep jobs from acceptance to confirmation; the module's docstring has the promises."""

    @property
    def durable(self) -> bool:
        """Whether accepted jobs survive the end of the process."""
        ...

    def append(
        self,
        receipt: Receipt,
        parts: Sequence[Part],
        key: bytes | None,
        done: OutcomeCallback,
        stream: int = DEFAULT,
        *,
        marks: bytes | None = None,
    ) -> None:
        """Accept a request of a stream; call ``done`` once with its outcome.

        ``marks`` is the fingerprint of the payloads as the client sent them, where ``parts`` have
        something else around them, such as the time; None: it is the fingerprint of ``parts``.

        The outcome is ``receipt``, or the receipt of an earlier request where ``key``, the hash of
        an Idempotency-Key, is known, a KeyReusedError where that request had other payloads, or a
        RefusedError where the request could not be written.

        Raises RefusedError if the journal cannot accept the request now, and TooLargeError if it
        never can. Nothing was accepted then, and ``done`` is not called.
        """
        ...

    async def wait_for_room(self) -> None:
        """Return once the journal can hold the parts of another large request in memory.

        The parts of a request may take many times the memory of its body.
        """
        ...

    def refusal(self) -> RefusedError | None:
        """Return the error that a request of one small payload would get now, or None."""
        ...

    async def seal(self, batch: Batch) -> None:
        """Make the members and the key of ``batch`` durable, and return then.

        It waits for as long as the disk refuses writes. Raises LaneLostError, and nothing else, if
        another process has taken over the jobs of the batch; then it must not be uploaded.
        """
        ...

    def settle(self, batch: Batch) -> None:
        """Remove a batch that the store has confirmed, with one of the next commits."""
        ...

    def bury(self, batch: Batch, code: str, reason: str) -> None:
        """Make a dead letter of a batch that the store refused for good.

        It is written with one of the next commits. ``code`` and ``reason`` are the store's error. A
        journal that keeps no dead letters calls ``JournalListener.discarded``.
        """
        ...

    async def page(self, after: int, most_jobs: int, most_bytes: int) -> list[Job]:
        """Return the next jobs of the stream of ``after``, in order; an empty list at its end.

        Their ``seq`` is above ``after``, which may be ``first_seq`` of a stream. Without jobs that
        are settled or dead, or that were sealed before the start. At most
        ``most_jobs`` jobs with ``most_bytes`` of payloads together, but one job of any size.
        """
        ...

    async def sealed(self) -> Batch | None:
        """Return the next sealed batch of which no job is in memory; None after the last.

        These are batches of earlier runs, revived dead letters, and batches that the pipeline has
        sealed and forgotten (``JournalListener.holds`` is False). After None the next call begins
        again with the first one.
        """
        ...

    async def pulse(self) -> None:
        """Return once a commit has ended, successful or not: the journal does not hang then."""
        ...


class JournalListener(Protocol):
    """The pipeline as a journal sees it: reports and questions, in the event loop only."""

    # Reports about jobs.

    def opened(self, newest: Mapping[int, int], payloads: int) -> None:
        """Note an open journal: the newest ``seq`` of each stream, by its number, and its payloads.

        Called once and first. A ``seq`` may be that of a job which has left the journal; it is not
        above the next one of its stream. A stream that is not in ``newest`` has no jobs. The
        payloads are those that are neither stored nor dead.
        """
        ...

    def committed(self, jobs: Sequence[Job]) -> None:
        """Queue jobs of one stream that are durable; ``Journal.page`` has those that do not fit.

        The jobs of one commit may come in several calls. A page that is read between two of them
        may contain jobs of the later call; the listener ignores them then.
        """
        ...

    def left_for_page(self, newest: int) -> None:
        """Note that durable jobs up to ``newest`` are not offered: ``Journal.page`` has them.

        The jobs are those of the stream of ``newest``.
        """
        ...

    def replayed(self, jobs: Sequence[Job]) -> None:
        """Note the members of a sealed batch of an earlier run, which go straight to a worker."""
        ...

    def taken_over(self, newest: Mapping[int, int], payloads: int) -> None:
        """Note the jobs of a lane of a shared journal that this process stores from now on.

        The streams are new ones of the pipeline. ``newest`` and ``payloads`` are as for ``opened``.
        """
        ...

    def taken_away(self, streams: Collection[int], payloads: int) -> None:
        """Forget the jobs of these streams: another process stores them.

        ``payloads``: those that were neither stored nor dead.
        """
        ...

    def closed(self, payloads: int) -> None:
        """Note the payloads that are in the journal at its end: neither stored nor dead."""
        ...

    # Reports about numbers of payloads.

    def accepted(self, payloads: int) -> None:
        """Count payloads that are durable now."""
        ...

    def accepted_in(self, stream: int, payloads: int) -> None:
        """Count payloads of a stream other than the default one; ``accepted`` has them, too."""
        ...

    def taken(self, payloads: int) -> None:
        """Count payloads that are queued and not acknowledged; ``acknowledged`` may follow."""
        ...

    def acknowledged(self, seq: int, payloads: int) -> None:
        """Count payloads that ``taken`` has counted, as acknowledged; ``seq`` is of their stream.

        It has the effect of ``accepted`` and ``accepted_in``.
        """
        ...

    def revived(self, payloads: int) -> None:
        """Count dead letters that are tried again; ``Journal.sealed`` returns them."""
        ...

    def damaged(self, payloads: int) -> None:
        """Count payloads that became dead letters because the journal cannot read them."""
        ...

    def discarded(self, payloads: int) -> None:
        """Count payloads that the store refused for good and that the journal does not keep."""
        ...

    def oldest_accepted(
        self, since: float | None, by_stream: Mapping[int, tuple[int, int]] | None = None
    ) -> None:
        """Note when the oldest job in the journal was accepted, in Unix time; None without jobs.

        ``by_stream``: for each stream with jobs that are neither stored nor dead, the lowest
        ``seq`` of them, and its time of acceptance in milliseconds or that of a job of the same
        commit; None where that is not known.
        """
        ...

    # Questions.

    def holds(self, seq: int) -> bool:
        """Return whether the job ``seq`` is in memory: queued or with a batch that is."""
        ...

    def jobs_in_memory(self) -> list[Job]:
        """Return the jobs that are queued or with a worker: not settled and not buried."""
        ...

    def seconds_for(self, payloads: int) -> int:
        """Return the whole seconds in which ``payloads`` leave the pipeline at the present rate."""
        ...

    @property
    def open_payloads(self) -> int:
        """Accepted payloads that are neither stored nor dead."""
        ...

    @property
    def queue_bytes(self) -> int:
        """The most bytes of payloads that the queue holds."""
        ...

    def has_room(self, jobs: int, size: int) -> bool:
        """Return whether the queue has room for so many jobs of ``size`` bytes together."""
        ...
