"""One suite for every journal: the promises of ``payloadd.journal.api``.

A new journal is one more entry of ``JOURNALS`` in ``opener.py``. ``test_contract_durable.py`` has
the promises of durable journals, and ``test_contract_itself.py`` shows that the suite finds faults.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
import trio

from payloadd.errors import KeyReusedError, RefusedError, TooLargeError
from payloadd.journal.api import Receipt
from payloadd.model.streams import count_of, first_seq, stream_of
from tests.journal.opener import ALL, JOURNALS, Opener
from tests.support.databases import environ_of
from tests.support.journal import batch, contents, id_number, id_of, job, part, until

if TYPE_CHECKING:
    from pathlib import Path

_SMALL: Final = {"JOURNAL_MAX_BYTES": "1MiB", "MAX_LENGTH": "1MiB"}
_DAY: Final = 24 * 3600


@pytest.fixture(params=JOURNALS)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Return each journal in turn, new."""
    return Opener(tmp_path / "state", environ_of(request.param))


async def test_a_request_is_answered_once_and_after_its_jobs_were_offered(opener: Opener) -> None:
    """Otherwise a client gets a 202 for payloads that the pipeline does not know."""
    async with opener.run() as run:
        assert await run.accept(1, count=3) == Receipt(id_of(1), 3)
        await run.journal.pulse()
        assert run.outcomes == [Receipt(id_of(1), 3)]
        assert run.pipeline.reports == ["opened", "accepted", "committed", "answered"]
        assert run.pipeline.payloads["accepted"] == 3
        assert contents(run.pipeline.received) == contents([job(seq) for seq in (1, 2, 3)])


async def test_an_empty_request_is_answered(opener: Opener) -> None:
    """Otherwise a client that sends an empty collection waits for ever."""
    async with opener.run() as run:
        assert await run.accept(1, count=0, key=b"k") == Receipt(id_of(1), 0)
        assert await run.accept(2, count=1, key=b"k") == Receipt(id_of(2), 1)
        assert [one.id for one in run.pipeline.received] == [id_of(2)]


async def test_all_jobs_are_offered_once_in_order_and_those_of_a_request_together(
    opener: Opener,
) -> None:
    """Otherwise a batch, named by its first and last number, contains wrong jobs."""
    sizes = {1000 * number: 1 + number % 5 for number in range(1, 60)}
    sizes[10**6] = 3000  # more jobs than a journal writes at once
    async with opener.run() as run:
        async with trio.open_nursery() as nursery:
            for number, count in sizes.items():
                nursery.start_soon(run.accept, number, count)
                await trio.lowlevel.checkpoint()
        await run.pipeline.read_pages(run.journal)
        seqs = {one.id: one.seq for one in run.pipeline.received}
        assert len(seqs) == len(run.pipeline.received) == sum(sizes.values())
        for number, count in sizes.items():
            first = seqs[id_of(number)]
            found = [seqs[id_of(number + index)] for index in range(count)]
            assert found == [*range(first, first + count)]
        assert len(run.outcomes) == len(sizes)
        assert run.pipeline.payloads["accepted"] == sum(sizes.values())


async def test_a_request_that_can_never_be_accepted_is_refused_at_once(opener: Opener) -> None:
    """Otherwise the client repeats the request for ever."""
    async with opener.run(max_bytes=2**20, environ=_SMALL) as run:
        large = part(1)._replace(lines=b"1" * 2**20 + b"\n")
        with pytest.raises(TooLargeError):
            run.journal.append(Receipt(large.id, 1), [large], None, run.outcomes.append)
        await run.journal.pulse()
        assert (run.outcomes, run.pipeline.received) == ([], [])


async def test_a_full_journal_refuses_whole_requests_until_jobs_are_stored(opener: Opener) -> None:
    """Otherwise half of a refused request is stored, or the journal never accepts again."""
    async with opener.run(max_jobs=1001, environ=_SMALL) as run:
        accepted = 0
        requests = (
            [part(one)._replace(lines=b"%1000d\n" % one) for one in range(first, first + 50)]
            for first in range(1, 50_000, 50)
        )
        with pytest.raises(RefusedError) as caught:  # noqa: PT012 - one of them is refused
            for parts in requests:
                run.journal.append(Receipt(parts[0].id, 50), parts, None, run.outcomes.append)
                accepted += 1
        assert caught.value.code in {"QUEUE_FULL", "JOURNAL_FULL"}
        assert caught.value.least_wait >= 1
        await until(lambda: len(run.outcomes) == accepted > 0)
        await run.pipeline.read_pages(run.journal)
        assert all(isinstance(one, Receipt) for one in run.outcomes)
        assert len(run.pipeline.received) == 50 * accepted == run.pipeline.payloads["accepted"]
        for one in run.pipeline.received:
            run.journal.settle(batch(one, sealed=False))
        run.pipeline.queued = 0
        await until(lambda: run.journal.refusal() is None)
        await run.journal.wait_for_room()
        assert (await run.accept(10**7)).payloads == 1


async def test_a_known_key_gets_the_first_receipt_and_accepts_nothing(opener: Opener) -> None:
    """Otherwise a client that repeats a request stores its payloads twice."""
    async with opener.run() as run:
        receipts: list[Receipt] = []

        async def accept(number: int) -> None:
            receipts.append(await run.accept(number, 2, b"key", like=1))

        async with trio.open_nursery() as nursery:
            for number in (1, 11, 21):
                nursery.start_soon(accept, number)
        receipts.append(await run.accept(31, 2, b"key", like=1))
        assert len(set(receipts)) == 1
        assert await run.accept(41, 1, b"other") == Receipt(id_of(41), 1)
        assert run.pipeline.payloads["accepted"] == len(run.pipeline.received) == 3
        durable = run.journal.durable
    async with opener.run() as run:
        again = await run.accept(51, 2, b"key", like=1)
        assert again == (receipts[0] if durable else Receipt(id_of(51), 2))


async def test_a_known_key_with_other_payloads_is_refused(opener: Opener) -> None:
    """The client would drop payloads that were never accepted."""
    async with opener.run() as run:
        first = await run.accept(1, 2, b"key")
        for other in (run.accept(11, 2, b"key"), run.accept(21, 1, b"key", like=1)):
            with pytest.raises(KeyReusedError, match="other payloads"):
                await other
        with pytest.raises(KeyReusedError):
            await run.accept(31, 0, b"key")
        assert await run.accept(41, 2, b"key", like=1) == first
        assert run.pipeline.payloads["accepted"] == len(run.pipeline.received) == 2


async def test_a_key_is_known_for_a_day(opener: Opener) -> None:
    """A retry would be stored twice, or a key that a client uses each day would be refused."""
    async with opener.run() as run:
        first = await run.accept(1, 2, b"key")
        # With DURABILITY=store the day begins when the request is stored, and so answered.
        run.journal.settle(batch(*run.pipeline.received, sealed=False))
        opener.passed += _DAY - 60
        assert await run.accept(11, 2, b"key", like=1) == first
        opener.passed += 61
        second = await run.accept(21, 1, b"key")
        run.journal.settle(batch(run.pipeline.received[-1], sealed=False))
        assert second == Receipt(id_of(21), 1)
        opener.passed += _DAY - 60
        assert await run.accept(31, 1, b"key", like=21) == second
        opener.passed += 61
        await run.accept(41, 1, b"key")
        assert run.pipeline.payloads["accepted"] == len(run.pipeline.received) == 4


async def test_jobs_that_are_not_stored_are_there_in_the_next_run(opener: Opener) -> None:
    """Otherwise a restart loses accepted payloads, or gives two jobs one number."""
    async with opener.run() as run:
        await run.accept(1, count=9)
        jobs = run.pipeline.received
        run.journal.settle(batch(*jobs[:2], sealed=False))
        durable = run.journal.durable
    left = jobs[2:] if durable else []
    assert run.pipeline.payloads["closed"] == len(left)
    async with opener.run() as run:
        assert run.journal.durable == durable
        assert run.pipeline.payloads["opened"] == len(left)
        assert await run.journal.sealed() is None
        assert contents(await run.journal.page(*ALL)) == contents(left)
        await run.accept(100)
        assert run.pipeline.received[0].seq == (10 if durable else 1)


@pytest.mark.parametrize(
    ("most_jobs", "most_bytes", "expected"), [(3, 10**6, 3), (9, 5, 2), (9, 4, 2), (9, 1, 1)]
)
async def test_a_page_keeps_its_bounds_but_contains_a_job(
    opener: Opener, most_jobs: int, most_bytes: int, expected: int
) -> None:
    """Otherwise a page takes more memory than the queue allows, or the backlog stops."""
    async with opener.run() as run:
        await run.accept(1, count=6)
        durable = run.journal.durable
    async with opener.run() as run:
        seqs = [one.seq for one in await run.journal.page(1, most_jobs, most_bytes)]
        assert seqs == ([*range(2, 2 + expected)] if durable else [])
        assert await run.journal.page(6, most_jobs, most_bytes) == []


async def test_a_sealed_batch_comes_back_whole_until_it_is_settled(opener: Opener) -> None:
    """Otherwise a repeated upload with other members or another key is a second object."""
    async with opener.run() as run:
        await run.accept(1, count=9)
        jobs = run.pipeline.received
        first, second = batch(*jobs[1:4]), batch(*jobs[5:7])
        await run.journal.seal(first)
        await run.journal.seal(second)
        durable = run.journal.durable
    left = [first, second] if durable else []
    async with opener.run() as run:
        page = await run.journal.page(*ALL)
        assert [one.seq for one in page] == ([1, 5, 8, 9] if durable else [])
        found = [await run.journal.sealed() for _ in left]
        assert await run.journal.sealed() is None
        for wanted, one in zip(left, found, strict=True):
            assert one is not None
            assert (one.key, one.format_name, one.sealed) == (wanted.key, "none", True)
            assert contents(one.jobs) == contents(wanted.jobs)
            run.journal.settle(one)
        members = [job_ for one in left for job_ in one.jobs]
        assert contents(run.pipeline.replayed_jobs) == contents(members)
    async with opener.run() as run:
        assert await run.journal.sealed() is None
        assert run.pipeline.payloads["opened"] == (4 if durable else 0)


async def test_a_forgotten_batch_comes_back_again_and_again_until_it_is_settled(
    opener: Opener,
) -> None:
    """A batch that was put back would wait for the next start, or be stored twice."""
    async with opener.run() as run:
        await run.accept(1, count=6)
        jobs = list(run.pipeline.received)
        kept, first, second = batch(*jobs[:2]), batch(jobs[2]), batch(*jobs[3:])
        for one in (kept, first, second):
            await run.journal.seal(one)
        run.pipeline.received[:] = jobs[:2]
        for _ in range(2):
            found = await run.journal.sealed(), await run.journal.sealed()
            if not run.journal.durable:
                assert found == (None, None)
                return
            assert [one and one.key for one in found] == [first.key, second.key]
            assert await run.journal.sealed() is None
            run.pipeline.replayed_jobs.clear()
        # The end of a batch is written with a later commit: until then it must not come back.
        run.journal.settle(first)
        run.journal.bury(second, "C", "r")
        assert await run.journal.sealed() is None
        await run.journal.pulse()
        assert await run.journal.sealed() is None
    assert run.pipeline.payloads["closed"] == 2


async def test_a_buried_batch_is_kept_or_reported_as_discarded(opener: Opener) -> None:
    """Otherwise `lost` is wrong, or a batch that the store refuses for good is sent again."""
    promises_stored = opener.environ.get("DURABILITY") == "store"
    async with opener.run() as run:
        await run.accept(1, count=3)
        one, two, three = run.pipeline.received
        run.journal.bury(batch(one, sealed=False), "KeyTooLongError", "too long")
        await run.journal.seal(batch(two, three))
        run.journal.bury(batch(two, three), "InvalidRequest", "no")
        lost = 0 if run.journal.durable or promises_stored else 3
    assert run.pipeline.payloads["closed"] == 0
    assert run.pipeline.payloads.get("discarded", 0) == lost
    async with opener.run() as run:
        assert run.pipeline.payloads["opened"] == 0
        assert await run.journal.sealed() is None
        assert await run.journal.page(*ALL) == []


async def test_jobs_that_find_the_queue_full_are_refused_or_read_later(opener: Opener) -> None:
    """Otherwise a burst is lost, or fills the memory."""
    async with opener.run(max_jobs=5) as run:
        accepted = 0
        for number in range(1, 12):
            with suppress(RefusedError):
                await run.accept(number)
                accepted += 1
        assert accepted == (11 if run.journal.durable else 5)
        assert run.pipeline.queued == 5
        await run.pipeline.read_pages(run.journal)
        assert [one.seq for one in run.pipeline.received] == [*range(1, accepted + 1)]


async def test_operations_are_written_when_the_journal_closes(opener: Opener) -> None:
    """Otherwise a drain that has stored all payloads stores them again at the next start."""
    async with opener.run() as run:
        await run.accept(1, count=4)
        jobs = run.pipeline.received
        for one in jobs[:2]:
            run.journal.settle(batch(one, sealed=False))
        run.journal.bury(batch(jobs[2], sealed=False), "C", "r")
        durable = run.journal.durable
    assert run.pipeline.payloads["closed"] == (1 if durable else 0)


async def test_an_idle_journal_has_a_pulse_and_refuses_nothing(opener: Opener) -> None:
    """Otherwise systemd ends an idle daemon, or a load balancer sends it no requests."""
    async with opener.run() as run:
        for _ in range(3):
            await run.journal.pulse()
        await run.journal.wait_for_room()
        assert run.journal.refusal() is None


async def test_each_stream_numbers_its_jobs_by_itself(opener: Opener) -> None:
    """Otherwise a job of another stream ends a batch, and objects hold one payload each."""
    opener.streams = ("clicks", "errors")
    async with opener.run() as run:
        assert run.streams == {"default": 0, "clicks": 1, "errors": 2}
        assert run.names == {0: "default", 1: "clicks", 2: "errors"}
        for number in range(1, 31):
            await run.accept(10 * number, 1 + number % 2, stream=number % 3)
        seqs = [one.seq for one in run.pipeline.received]
        for stream in range(3):
            found = [seq for seq in seqs if stream_of(seq) == stream]
            assert found == [*range(found[0], found[0] + 15)]
            assert found[0] > first_seq(stream)
        assert run.pipeline.payloads["accepted"] == len(set(seqs)) == 45


async def test_requests_of_several_streams_are_committed_together(opener: Opener) -> None:
    """Otherwise jobs of one stream are queued as those of another, or some never are."""
    opener.streams = tuple(f"s{number}" for number in range(1, 40))
    async with opener.run() as run:
        async with trio.open_nursery() as nursery:
            for number in range(400):
                accept = partial(run.accept, 10 * number + 1, 2, stream=number % 40)
                nursery.start_soon(accept)
        await run.pipeline.read_pages(run.journal)
        assert len({one.id for one in run.pipeline.received}) == 800
        for one in run.pipeline.received:
            assert stream_of(one.seq) == id_number(one) // 10 % 40


async def test_a_page_has_jobs_of_one_stream(opener: Opener) -> None:
    """Otherwise the jobs of another stream are offered twice, or never."""
    opener.streams = ("clicks", "errors")
    async with opener.run() as run:
        for stream in (0, 1, 2):
            await run.accept(10 * stream + 1, 4, stream=stream)
        durable, jobs = run.journal.durable, run.pipeline.received
    async with opener.run() as run:
        for stream in (0, 1, 2):
            own = [one for one in jobs if stream_of(one.seq) == stream] if durable else []
            page = await run.journal.page(first_seq(stream), 100, 10**6)
            assert contents(page) == contents(own)
            after = first_seq(stream) + count_of(jobs[-1].seq)
            assert await run.journal.page(after, 100, 10**6) == []


async def test_objects_are_stored_under_the_name_of_their_stream(opener: Opener) -> None:
    """Otherwise a reader finds payloads of other streams, or none."""
    opener.streams = ("clicks", "errors")
    opener.key_template = "{{stream}}/{stream}/{id}"
    async with opener.run() as run:
        for stream in (0, 1, 2):
            await run.accept(10 * stream + 1, stream=stream)
        keys = [run.layouts.batch([one]).key for one in run.pipeline.received]
        assert keys == [
            f"{{stream}}/{name}/{one.id}"
            for name, one in zip(run.names.values(), run.pipeline.received, strict=True)
        ]


async def test_a_large_request_does_not_hold_back_another_stream(opener: Opener) -> None:
    """Otherwise one client delays the payloads of all streams."""
    opener.streams = ("clicks",)
    async with opener.run() as run:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(run.accept, 10**6, 3000, stream=1))
            for number in range(1, 400):
                nursery.start_soon(partial(run.accept, number, stream=number % 2))
        await run.pipeline.read_pages(run.journal)
        of_clicks = [one.seq for one in run.pipeline.received if stream_of(one.seq) == 1]
        assert of_clicks == [*range(of_clicks[0], of_clicks[0] + 3200)]
        assert len(run.pipeline.received) == 3399
