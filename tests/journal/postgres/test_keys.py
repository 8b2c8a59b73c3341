"""Idempotency-Keys that several processes get at once, and the tables that they rotate through."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING, Final

import psycopg
import pytest
import trio

from payloadd.journal.api import Receipt
from payloadd.journal.fingerprint import fingerprint
from payloadd.journal.key_clock import uptime
from payloadd.journal.postgres import keys
from payloadd.journal.postgres.operations import PendingRequest
from tests.journal.postgres.rig import Member, member
from tests.support.databases import new_database, server
from tests.support.journal import append

if TYPE_CHECKING:
    from collections.abc import Callable

_HOUR: Final = 3600 * 1000


@pytest.fixture
def url() -> str:
    """Return the URL of a new journal."""
    return new_database()


def at(time_in_period: int) -> Callable[[], int]:
    """Return a clock whose keys are used at this time within a period; milliseconds."""
    rows = server().execute("SELECT (extract(epoch FROM now()) * 1000)::bigint")
    shift = time_in_period - int(str(rows[0][0])) % keys._PERIOD
    return lambda: uptime() + shift


def tables(url: str) -> dict[int, int]:
    """Return how many keys each table has."""
    name = url.rpartition("/")[2]
    found = {}
    for number in range(5):
        rows = server().execute(f"SELECT count(*) FROM payloadd.keys_{number}", name)
        found[number] = int(str(rows[0][0]))
    return {number: count for number, count in found.items() if count}


async def outcome_at(one: Member, number: int, key: bytes, like: int) -> object:
    """Send a request with a key to a process; return its outcome."""
    wanted = append(number, key, 1, like=like)
    return await one.outcome_of(wanted.receipt, wanted.parts, key)


async def test_requests_with_one_key_at_two_processes_are_accepted_once(url: str) -> None:
    """A client that repeats a request at another process would store its payloads twice."""
    names = [b"%d" % number for number in range(40)]
    outcomes: dict[bytes, list[object]] = {name: [] for name in names}
    async with member(url) as one, member(url) as two:

        async def send(process: Member, first: int) -> None:
            async with trio.open_nursery() as nursery:
                for name in random.sample(names, len(names)):
                    nursery.start_soon(add, process, first + int(name), name)

        async def add(process: Member, number: int, name: bytes) -> None:
            outcomes[name].append(await outcome_at(process, number, name, like=int(name)))

        async with trio.open_nursery() as nursery:
            for turn in range(4):
                nursery.start_soon(send, (one, two)[turn % 2], 1000 * (turn + 1))
        accepted = [*one.pipeline.received, *two.pipeline.received]
    assert len(accepted) == len(names)
    for found in outcomes.values():
        assert len(found) == 4
        assert len(set(found)) == 1
        assert isinstance(found[0], Receipt)


@pytest.mark.parametrize("later_first", [False, True])
def test_processes_whose_clocks_are_in_different_periods_wait_for_each_other(
    url: str,
    later_first: bool,  # noqa: FBT001 - a parameter
) -> None:
    """Two requests with one key, at two processes, would both be accepted at a turn of periods."""
    times = [8 * _HOUR + 5000, 8 * _HOUR - 5000]
    outcomes: list[object] = []
    waits = threading.Event()
    wanted = [append(number, b"key", 1, like=1) for number in (10, 20)]
    requests = [
        PendingRequest(one.receipt, one.parts, one.key, None, 0, 0, fingerprint(one.parts))
        for one in wanted
    ]

    def insert(connection: psycopg.Connection[tuple[object, ...]], turn: int) -> None:
        clock = keys.SharedClock(at(times[turn ^ (not later_first)]))
        clock.read(connection)
        shared = keys.SharedKeys(clock)
        periods = shared.prepare(connection)
        cursor = connection.cursor()
        cursor.execute("BEGIN")
        waits.set()
        shared.insert(cursor, [requests[turn]], periods)

    def second() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            insert(connection, 1)
            outcomes.append(requests[1].earlier)

    with psycopg.connect(url, autocommit=True) as connection:
        insert(connection, 0)
        waits.clear()
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(60)
        thread.join(0.2)
        assert thread.is_alive()
        connection.execute("COMMIT")
        thread.join(20)
    assert requests[0].earlier is None
    assert outcomes == [requests[0].receipt]


async def test_a_table_is_emptied_before_it_is_used_again(url: str) -> None:
    """Keys would fill the disk of the database."""
    passed = 0
    clock = at(_HOUR)
    async with member(url, read_uptime=lambda: clock() + passed) as one:
        for turn in range(7):
            passed = turn * 8 * _HOUR
            for number in range(3):
                name = b"%d-%d" % (turn, number)
                await outcome_at(one, 10 * turn + number + 1, name, like=1)
        found = tables(url)
        assert [*found.values()] == [3, 3, 3, 3, 3]
        again = await outcome_at(one, 100, b"6-0", like=1)
        assert isinstance(again, Receipt)
        assert len(one.pipeline.received) == 21


async def test_the_oldest_keys_go_early_where_they_take_too_much(url: str) -> None:
    """A client with a key for each request would fill the disk of the database."""
    passed = 0
    clock = at(_HOUR)
    async with member(url, read_uptime=lambda: clock() + passed) as one:
        for turn in range(3):
            passed = turn * 8 * _HOUR
            await outcome_at(one, turn + 1, b"%d" % turn, like=1)
        name = url.rpartition("/")[2]
        server().execute("ANALYZE", name)
        session = one.shared.session
        assert await one.shared.calls.once(session.maintain_keys, 10**9) == 0
        assert await one.shared.calls.once(session.maintain_keys, 1) == 1
        assert sum(tables(url).values()) == 2
        assert isinstance(await outcome_at(one, 50, b"2", like=1), Receipt)
        assert len(one.pipeline.received) == 3
