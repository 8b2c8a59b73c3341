"""Requests are accepted whole or not at all, and never beyond the bounds."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from payloadd.config import settings as config
from payloadd.errors import KeyReusedError, RefusedError, TooLargeError
from payloadd.journal.api import Receipt
from payloadd.journal.memory import MemoryJournal
from payloadd.model.envelope import Envelope
from payloadd.observe.health import Health
from payloadd.observe.metrics import Metrics
from payloadd.pipeline.accounting import Accounting
from payloadd.pipeline.intake import Intake, StoredObjects
from payloadd.pipeline.listener import PipelineListener
from payloadd.pipeline.queue import JobChannel
from payloadd.pipeline.refill import QueueFeeder


class JournalWithWait(MemoryJournal):
    """A journal that waits for ``room``, if that is set."""

    room: trio.Event | None = None

    async def wait_for_room(self) -> None:
        """Wait for the event."""
        if self.room is not None:
            await self.room.wait()


class Rig:
    """An intake with all parts behind it."""

    def __init__(
        self, max_jobs: int = 3, max_bytes: int = 10, most_keys: int = 9, **environ: str
    ) -> None:
        self.channel = JobChannel(max_jobs, max_bytes)
        metrics = Metrics()
        self.accounting = Accounting(metrics)
        self.health = Health()
        self.feeder = QueueFeeder(self.channel, self.accounting)
        listener = PipelineListener(self.channel, self.feeder, self.accounting, metrics)
        self.journal = JournalWithWait(listener, most_keys)
        settings = config.load({"MAX_QUEUE": str(max_jobs), "BATCH_MAX_PAYLOADS": "1", **environ})
        self.intake = Intake(self.journal, self.health, settings)


async def test_one_request_becomes_one_job_a_payload_in_order() -> None:
    """Payloads would be mixed up or stored under the wrong id."""
    rig = Rig()
    receipt = await rig.intake.accept([b"1", b"22"])
    jobs = [rig.channel.receive_nowait() for _ in range(2)]
    assert [job.lines for job in jobs] == [b"1\n", b"22\n"]
    assert jobs[0].id == receipt.id
    assert receipt.payloads == 2
    assert rig.accounting.accepted == 2
    assert (rig.channel.jobs, rig.channel.bytes) == (0, 0)


@pytest.mark.parametrize("request_", [[b"1", b"2"], [b"123456"]], ids=["jobs", "bytes"])
async def test_a_request_that_does_not_fit_leaves_nothing_behind(request_: list[bytes]) -> None:
    """The accepted half would be stored twice when the client sends the request again."""
    rig = Rig()
    await rig.intake.accept([b"1", b"2"])
    with pytest.raises(RefusedError) as caught:
        await rig.intake.accept(request_)
    assert caught.value.code == "QUEUE_FULL"
    assert 1 <= caught.value.retry_after <= 90
    assert (rig.channel.jobs, rig.channel.bytes, rig.accounting.accepted) == (2, 4, 2)


@pytest.mark.parametrize(
    ("request_", "setting"), [([b"1"] * 4, "MAX_QUEUE"), ([b"1234567890"], "MAX_QUEUE_BYTES")]
)
async def test_a_request_that_can_never_fit_is_too_large(
    request_: list[bytes], setting: str
) -> None:
    """A client that is asked to retry later would retry for ever."""
    with pytest.raises(TooLargeError, match=setting):
        await Rig().intake.accept(request_)


async def test_an_empty_collection_is_accepted_and_stores_nothing() -> None:
    """Clients that flush an empty buffer would get an error."""
    rig = Rig()
    assert (await rig.intake.accept([])).id.version == 7
    assert rig.channel.jobs == 0


async def test_neither_an_empty_collection_nor_a_refused_request_leaves_a_key() -> None:
    """A client that uses such a key again would have its payloads dropped."""
    rig = Rig(max_jobs=1)
    await rig.intake.accept([], "key")
    await rig.intake.accept([b"1"])
    with pytest.raises(RefusedError):
        await rig.intake.accept([b"2"], "key")
    rig.channel.receive_nowait()
    rig.channel.release(2)
    assert (await rig.intake.accept([b"3"], "key")).payloads == 1
    assert rig.channel.receive_nowait().lines == b"3\n"


async def test_refusal_returns_the_error_of_a_small_request() -> None:
    """`/readyz` would keep an instance in the balancer that refuses requests."""
    rig = Rig(max_jobs=1)
    assert rig.intake.refusal() is None
    await rig.intake.accept([b"1"])
    refusal = rig.intake.refusal()
    assert refusal is not None
    assert refusal.code == "QUEUE_FULL"
    rig.health.phase = "draining"
    refusal = rig.intake.refusal()
    assert refusal is not None
    assert refusal.code == "DRAINING"


async def test_a_collection_is_cut_into_parts_that_fit_into_an_object() -> None:
    """An object would have more payloads than BATCH_MAX_PAYLOADS allows."""
    rig = Rig(max_jobs=9, max_bytes=1000, BATCH_MAX_PAYLOADS="2")
    receipt = await rig.intake.accept([b"1", b"2", b"3"])
    jobs = [rig.channel.receive_nowait() for _ in range(2)]
    assert [(job.lines, job.payloads) for job in jobs] == [(b"1\n2\n", 2), (b"3\n", 1)]
    assert receipt.payloads == 3


async def test_a_repeated_key_gets_the_first_receipt() -> None:
    """The payloads of a client that repeats a request would be stored twice."""
    rig = Rig()
    first = await rig.intake.accept([b"1"], "key")
    assert await rig.intake.accept([b"1"], "key") == first
    assert (await rig.intake.accept([b"1"], "other")).id != first.id
    assert (rig.channel.jobs, rig.accounting.accepted) == (2, 2)


async def test_the_number_of_keys_in_memory_is_bounded() -> None:
    """Memory would grow with every key."""
    rig = Rig(most_keys=1)
    first = await rig.intake.accept([b"1"], "a")
    await rig.intake.accept([b"1"], "b")
    assert (await rig.intake.accept([b"1"], "a")).id != first.id


async def test_lines_become_jobs_when_the_journal_has_room_for_them() -> None:
    """The jobs of all large requests together would fill the memory."""
    rig = Rig(max_jobs=9, max_bytes=1000, BATCH_MAX_PAYLOADS="2")
    room = rig.journal.room = trio.Event()
    outcomes: list[Receipt | RefusedError] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.intake.submit_lines, b"1\n22\n3\n", [1, 2, 1], None, outcomes.append)
        await wait_all_tasks_blocked()
        assert not outcomes
        room.set()
    jobs = [rig.channel.receive_nowait() for _ in range(2)]
    assert [(job.lines, job.payloads) for job in jobs] == [(b"1\n22\n", 2), (b"3\n", 1)]
    assert outcomes == [Receipt(jobs[0].id, 3)]
    await rig.intake.submit_lines(b"4\n", [1], None, outcomes.append)
    assert rig.channel.receive_nowait().lines == b"4\n"


async def test_a_key_compares_the_payloads_without_their_envelopes() -> None:
    """A repetition is received at another time, and would get 422 instead of the first answer."""
    rig = Rig(99, 999, BATCH_MAX_PAYLOADS="2")
    first, second = Envelope(b'{"at":1,"payload":'), Envelope(b'{"at":2,"payload":')
    outcomes: list[object] = []
    rig.intake.submit([b"1", b"2", b"3"], "k", outcomes.append, envelope=first)
    rig.intake.submit([b"1", b"2", b"3"], "k", outcomes.append, envelope=second)
    await rig.intake.submit_lines(b"1\n2\n3\n", [1, 1, 1], "k", outcomes.append, envelope=second)
    rig.intake.submit([b"1", b"2", b"3"], "k", outcomes.append)
    receipt = outcomes[0]
    assert outcomes == [receipt] * 4
    rig.intake.submit([b"1", b"2", b"4"], "k", outcomes.append, envelope=first)
    await rig.intake.submit_lines(b"1\n2\n4\n", [1, 1, 1], "k", outcomes.append, envelope=first)
    assert all(isinstance(outcome, KeyReusedError) for outcome in outcomes[4:])
    assert len(outcomes) == 6
    jobs = [rig.channel.receive_nowait() for _ in range(2)]
    assert b"".join(job.lines for job in jobs) == (
        b'{"at":1,"payload":1}\n{"at":1,"payload":2}\n{"at":1,"payload":3}\n'
    )
    assert (rig.channel.jobs, rig.accounting.accepted) == (0, 3)


async def test_jobs_are_cut_by_their_size_with_envelopes() -> None:
    """Objects would be larger than BATCH_MAX_BYTES."""
    rig = Rig(99, 999, BATCH_MAX_PAYLOADS="9", BATCH_MAX_BYTES="25")
    envelope = Envelope(b'{"payload":')
    outcomes: list[object] = []
    rig.intake.submit([b"1", b"2"], None, outcomes.append, envelope=envelope)
    await rig.intake.submit_lines(b"1\n2\n", [1, 1], None, outcomes.append, envelope=envelope)
    jobs = [rig.channel.receive_nowait() for _ in range(4)]
    assert [job.lines for job in jobs] == [b'{"payload":1}\n', b'{"payload":2}\n'] * 2


async def test_only_accepted_requests_are_watched() -> None:
    """Refused and repeated requests would fill the memory of watched ones."""
    rig = Rig(2, 99)
    uploads = rig.intake.uploads
    waits: list[object] = []

    def done(outcome: Receipt | RefusedError) -> None:
        assert isinstance(outcome, Receipt)
        uploads.wait(outcome, 9, waits.append)

    rig.intake.submit([b"1"], "k", done, watch=True)
    rig.intake.submit([b"1"], "k", done, watch=True)
    assert (uploads.waiting, len(uploads.jobs)) == (2, 1)
    with pytest.raises(RefusedError):
        rig.intake.submit([b"1", b"2"], None, done, watch=True)
    assert (uploads.waiting, len(uploads.jobs)) == (2, 1)
    rig.intake.submit([], None, done, watch=True)
    assert waits == [StoredObjects([], 0)]
