"""The promises of durable journals: what is there after a crash, and on a disk with faults."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, Final

import pytest
import trio

from payloadd.config.settings import load
from payloadd.journal.api import Receipt
from payloadd.model.job import accepted_at
from payloadd.model.layout import Layout
from payloadd.model.streams import first_seq, stream_of
from tests.journal.opener import ALL, DURABLE, ON_DISK, Opener
from tests.journal.sync_scenarios import SCENARIOS
from tests.support.daemon import ROOT, environment
from tests.support.databases import environ_of
from tests.support.journal import batch, contents, id_of, part, until

if TYPE_CHECKING:
    from pathlib import Path

_TIMEOUT: Final = 120
_LARGE: Final = 2**20


@pytest.fixture(params=DURABLE)
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Return each durable journal in turn, new."""
    return Opener(tmp_path / "state", environ_of(request.param))


async def test_what_was_promised_is_there_after_a_kill(opener: Opener) -> None:
    """A killed daemon would lose payloads with a 2xx, store them twice, or under other keys."""
    async with opener.run() as run:
        receipt = await run.accept(1, count=9, key=b"key")
        large = [part(number)._replace(lines=b"%0*d\n" % (_LARGE, number)) for number in (20, 21)]
        await run.outcome_of(Receipt(id_of(20), 2), large)
        jobs = run.pipeline.received
        await run.journal.seal(batch(*jobs[1:4]))
        run.journal.bury(batch(jobs[4], sealed=False), "KeyTooLongError", "too long")
        run.journal.settle(batch(jobs[5], sealed=False))
        await run.journal.pulse()
        killed = await trio.to_thread.run_sync(opener.copy)
        # Not there for sure: operations that no commit has had. This one must not hurt.
        run.journal.settle(batch(jobs[6], sealed=False))
    with killed.inspect() as inspection:
        assert [letter.payloads for letter in inspection.dead()] == [1]
    async with killed.run() as run:
        assert run.pipeline.payloads["opened"] == 9
        sealed = await run.journal.sealed()
        assert sealed is not None
        assert (sealed.key, contents(sealed.jobs)) == ("k2", contents(jobs[1:4]))
        assert await run.journal.sealed() is None
        left = [jobs[0], *jobs[6:]]
        assert contents(await run.journal.page(*ALL)) == contents(left)
        assert await run.accept(31, 9, b"key", like=1) == receipt
        await run.accept(40)
        assert run.pipeline.received[0].seq > jobs[-1].seq


async def test_dead_letters_can_be_listed_tried_again_and_dropped(opener: Opener) -> None:
    """An operator could not find out what was refused, and payloads with a 2xx would be lost."""
    async with opener.run() as run:
        await run.accept(1, count=5)
        one, two, three, four, five = run.pipeline.received
        run.journal.bury(batch(one, sealed=False), "KeyTooLongError", "too long")
        await run.journal.seal(batch(two, three))
        run.journal.bury(batch(two, three), "InvalidRequest", "no")
        run.journal.bury(batch(four, five), "InvalidRequest", "never")
    with opener.inspect() as inspection:
        status = inspection.status()
        assert (status.dead_letters, status.dead_payloads, status.payloads) == (3, 5, 0)
        letters = inspection.dead()
        first, second, third = letters
        assert [letter.payloads for letter in letters] == [1, 2, 2]
        assert (first.code, first.key) == ("KeyTooLongError", "k1")
        assert "too long" in first.reason
        assert inspection.lines(second.id) == two.lines + three.lines
        assert inspection.drop([first.id]) == 1
        assert inspection.retry([second.id]) == 1
    async with opener.run() as run:
        await until(lambda: run.pipeline.payloads.get("revived") == 2)
        found = await run.journal.sealed()
        assert found is not None
        assert (found.key, contents(found.jobs)) == ("k2", contents([two, three]))
        run.journal.settle(found)
        assert await run.journal.sealed() is None
        assert await run.journal.page(*ALL) == []
    with opener.inspect() as inspection:
        assert [letter.id for letter in inspection.dead()] == [third.id]
        assert inspection.lines(third.id) == four.lines + five.lines


async def test_jobs_keep_the_layout_that_they_were_accepted_under(opener: Opener) -> None:
    """After a change of KEY_TEMPLATE a batch would be stored a second time, under a new key."""
    environs = [
        {"KEY_TEMPLATE": "old/{id}.ndjson", "COMPRESSION": "gzip", "BATCH_MAX_PAYLOADS": "1"},
        {"KEY_TEMPLATE": "new/{date}/{id}.ndjson", "BATCH_MAX_PAYLOADS": "9"},
        {"KEY_TEMPLATE": "newest/{id}.ndjson", "BATCH_MAX_PAYLOADS": "9"},
    ]
    keys: list[str] = []
    expected = [Layout.of(load(environ)) for environ in environs]
    for number, environ in enumerate(environs, 1):
        async with opener.run(environ=environ) as run:
            await run.accept(number)
            jobs = [*await run.journal.page(*ALL)]
            found = [run.layouts.layout_of(one.seq) for one in jobs]
            assert found == expected[:number]
            keys = [run.layouts.batch([one]).key for one in jobs]
            assert keys[0] == f"old/{id_of(1)}.ndjson.gz"
            assert [run.layouts.next_change(one.seq) for one in jobs[:-1]] == [
                one.seq for one in jobs[1:]
            ]
    assert keys[-1] == f"newest/{id_of(3)}.ndjson"


async def test_the_age_of_the_oldest_job_is_reported(opener: Opener) -> None:
    """The metric that shows a backlog would stay at 0, or for ever at the age of a stored job."""
    async with opener.run() as run:
        await run.accept(1, count=3)
        one, two, three = run.pipeline.received
        await until(lambda: run.pipeline.oldest[-1:] == [accepted_at(one.id)])
        run.journal.settle(batch(one, sealed=False))
        run.journal.settle(batch(two, three, sealed=False))
        await until(lambda: run.pipeline.oldest[-1:] == [None])
        await run.accept(10)
        await until(lambda: run.pipeline.oldest[-1:] == [accepted_at(id_of(10))])
    async with opener.run() as run:
        await until(lambda: run.pipeline.oldest[-1:] == [accepted_at(id_of(10))])


async def test_a_stream_keeps_its_number_and_its_jobs(opener: Opener) -> None:
    """A batch would be stored twice, or under the name of another stream, after a restart."""
    opener.streams = ("clicks", "errors")
    opener.key_template = "{stream}/{id}.ndjson"
    async with opener.run() as run:
        for number in range(30):
            await run.accept(10 * number + 1, stream=number % 3)
        jobs = run.pipeline.received
        sealed = batch(*[one for one in jobs if stream_of(one.seq) == 1][:3])
        await run.journal.seal(sealed)
        keys = {one.id: run.layouts.batch([one]).key for one in jobs}
    killed = await trio.to_thread.run_sync(opener.copy)
    killed.streams = ("views", "errors")
    async with killed.run() as run:
        assert run.streams == {"default": 0, "views": 3, "errors": 2}
        assert run.names == {0: "default", 1: "clicks", 2: "errors", 3: "views"}
        found = await run.journal.sealed()
        assert found is not None
        assert contents(found.jobs) == contents(sealed.jobs)
        left = [*found.jobs]
        for stream in run.names:
            left += await run.journal.page(first_seq(stream), 100, 10**6)
        assert contents(sorted(left)) == contents(sorted(jobs))
        assert {one.id: run.layouts.batch([one]).key for one in left} == keys
        for stream in (0, 2, 3):
            await run.accept(1000 + stream, stream=stream)
        new = run.pipeline.received
        assert [stream_of(one.seq) for one in new] == [0, 2, 3]
        newest = {stream_of(one.seq): one.seq for one in sorted(jobs)}
        assert all(one.seq > newest.get(stream_of(one.seq), 0) for one in new)
        assert run.layouts.batch(new[2:]).key == f"views/{new[2].id}.ndjson"


async def test_an_operator_sees_the_streams(opener: Opener) -> None:
    """It would be unknown which stream has the backlog, and which payloads the store refused."""
    opener.streams = ("clicks", "errors")
    async with opener.run() as run:
        await run.accept(1, count=3, stream=1)
        await run.accept(11, count=4)
        one = run.pipeline.received[0]
        run.journal.bury(batch(one, sealed=False), "KeyTooLongError", "too long")
    with opener.inspect() as inspection:
        assert [letter.stream for letter in inspection.dead()] == ["clicks"]
        found = inspection.status().streams
        assert [*found] == ["default", "clicks"]
        default, clicks = found.values()
        assert (default.jobs, default.payloads, default.dead_letters) == (4, 4, 0)
        assert (clicks.jobs, clicks.payloads, clicks.dead_letters) == (2, 2, 1)
        assert clicks.oldest_seconds > 0


async def test_the_age_is_that_of_the_oldest_job_of_all_streams(opener: Opener) -> None:
    """The backlog of one stream would not be seen."""
    opener.streams = ("clicks", "errors")
    old, new = id_of(1), uuid.UUID(int=id_of(5).int + (60_000 << 80))
    async with opener.run() as run:
        await run.outcome_of(Receipt(new, 1), [part(2)._replace(id=new)])
        await run.outcome_of(Receipt(old, 1), [part(1)], None, 2)
        await until(lambda: run.pipeline.oldest[-1:] == [accepted_at(old)])
        run.journal.settle(batch(run.pipeline.received[1], sealed=False))
        await until(lambda: run.pipeline.oldest[-1:] == [accepted_at(new)])


async def test_sealed_batches_of_several_streams_come_by_turns(opener: Opener) -> None:
    """The put-back batches of one stream would delay those of all others."""
    opener.streams = ("clicks", "errors")
    async with opener.run() as run:
        for stream in (0, 1, 2):
            await run.accept(100 * stream + 1, count=6, stream=stream)
        for one in run.pipeline.received:
            await run.journal.seal(batch(one))
    async with opener.run() as run:
        found = []
        while (sealed := await run.journal.sealed()) is not None:
            found += [stream_of(sealed.jobs[0].seq)]
        assert found == [0, 1, 2] * 6


@pytest.mark.usefixtures("syncs_on_command")
@pytest.mark.parametrize("opener", ON_DISK, indirect=True)
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_syncs_are_waited_for(opener: Opener, scenario: str) -> None:
    """A 2xx would be lost with the power, or a disk error would stop the daemon for ever."""
    await trio.to_thread.run_sync(run_scenario, opener, scenario)


def run_scenario(opener: Opener, scenario: str) -> None:
    """Run a scenario with a disk on command in a process of its own."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.journal.sync_scenarios", scenario),
            *(str(opener.folder), json.dumps(opener.environ)),
            *(opener.open.__module__, getattr(opener.open, "__name__", "")),
        ],
        cwd=ROOT,
        env=environment(opener.folder.parent),
        capture_output=True,
        check=False,
        text=True,
        timeout=_TIMEOUT,
    )
    assert done.returncode == 0, done.stderr
