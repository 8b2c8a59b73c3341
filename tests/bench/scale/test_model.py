"""The model of a fleet: its arithmetic, and what one and three real processes do."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests.bench.__main__ import main
from tests.bench.compare import WORKS
from tests.bench.load import Drive, Load, run_wrk
from tests.bench.measure import settled
from tests.bench.peers import STORED
from tests.bench.peers.peer import post_once
from tests.bench.scale.model import (
    LOAD,
    PUTS_A_PREFIX,
    Batching,
    Costs,
    Prices,
    objects_a_second,
    plan,
    wait_for_batch,
)
from tests.bench.scale.part import LINGERS, MILLION, Measured, table_of
from tests.bench.sink import sink
from tests.support import proc
from tests.support.tools import need_tools

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bench.peers.peer import Running
    from tests.bench.sink import Sink

_COSTS: Final = Costs(payload=30e-6, put=100e-6, answer=0.01)
_QUARTER: Final = Batching(0.25)
_TRIES: Final = 4


@pytest.mark.parametrize(
    ("rate", "batching", "objects"),
    [
        (0, _QUARTER, 0),
        (0.001, _QUARTER, 0.001),  # each payload alone
        (10**4, _QUARTER, 4),
        (10**6, _QUARTER, 100),  # 10,000 payloads
        (500, Batching(1.0, most_payloads=1), 500),
        (10**4, Batching(10.0, payload_bytes=2**20), 10**4 / 7),  # 7 payloads of a MiB in 8 MiB
    ],
)
def test_a_batch_ends_after_the_linger_or_when_it_is_full(
    rate: float, batching: Batching, objects: float
) -> None:
    """The cost of PUTs would be wrong by orders of magnitude."""
    assert objects_a_second(rate, batching) == pytest.approx(objects, rel=0.01)


def test_processes_and_databases_are_half_busy() -> None:
    """A fleet would have no machine to lose, and answers would take long."""
    for millions in (0.001, 1, 10, 100):
        one = plan("postgres", millions * MILLION, _COSTS, Batching(1.0), Prices())
        assert one.cpu / one.processes <= LOAD + 1e-9
        fewer = one.processes - 1
        assert one.processes == 2 or millions * MILLION * 30e-6 / fewer > 0.99 * LOAD
        assert one.nodes >= 2
        assert one.rate / (one.databases * Prices().database_rate) <= LOAD


def test_keys_need_shards_beyond_the_rate_of_a_prefix() -> None:
    """S3 would throttle a fleet that the table calls possible."""
    alone = Batching(1.0, most_payloads=1)
    few = plan("disk", PUTS_A_PREFIX - 1, _COSTS, alone, Prices())
    many = plan("disk", PUTS_A_PREFIX + 1, _COSTS, alone, Prices())
    assert (few.shards, many.shards) == (1, 256)
    assert many.puts_a_prefix == pytest.approx(many.puts / 256)
    assert few.put_dollars == pytest.approx((PUTS_A_PREFIX - 1) * 86_400 * 0.000005)


def test_only_answers_of_the_store_wait_for_the_batch() -> None:
    """The table would recommend a mode for a latency that it does not have."""
    prices = Prices(put_seconds=0.05, database_answer=0.03)
    found = [plan(mode, MILLION, _COSTS, _QUARTER, prices).p99 for mode in LINGERS]
    assert found == pytest.approx([0.01, 0.36, 0.03])
    full = plan("store", 100, _COSTS, Batching(3600, most_payloads=10), prices)
    assert full.p99 == pytest.approx(0.01 + 10 / 50 + 0.1)
    assert wait_for_batch(0, _QUARTER) == 0.25


def test_the_table_has_each_rate_in_each_mode() -> None:
    """A reader would compare modes of which one is missing."""
    section = table_of(Measured(dict.fromkeys(LINGERS, _COSTS)), Prices())
    rows = [(row["million POSTs a minute"], row["mode"]) for row in section.rows]
    modes = ("disk", "store", "postgres", "disk")
    assert rows == [(rate, mode) for rate in ("1", "10", "100") for mode in modes]
    assert section.rows[-1]["of a prefix"].endswith("({shard}: too many)")


@pytest.mark.large
@pytest.mark.no_cover
async def test_the_part_measures_and_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table could not be made on another machine."""
    need_tools("nginx", "wrk")
    options = ["--part=scale", "--rounds=1", "--duration=1", "--connections=64"]
    run = partial(main, [*options, f"--results={tmp_path}", "--database-rate=1000"])
    assert await trio.to_thread.run_sync(run) == 0
    (plans,) = json.loads((tmp_path / "figures.json").read_text()).values()
    assert [one["databases"] for one in plans[:3]] == [0, 0, 34]
    assert "Computed, not run" in capsys.readouterr().out


@dataclass(frozen=True, slots=True)
class _Ran:
    """What some processes did together."""

    rate: float
    puts: float
    p99: float
    cpu: float
    """CPU seconds a second."""


@pytest.mark.large
@pytest.mark.no_cover
async def test_the_model_is_what_one_and_three_processes_do(tmp_path: Path) -> None:
    """The table would be a calculation without a relation to the program."""
    need_tools("nginx", "wrk")
    # The work of another program within these seconds is no error of the model.
    wrong: list[str] = []
    for number in range(_TRIES):
        one = await _run(1, _new(tmp_path, f"{number}-1"))
        three = await _run(3, _new(tmp_path, f"{number}-3"))
        wrong = _differences(one, three)
        if not wrong:
            return
    raise AssertionError(wrong)


def _differences(one: _Ran, three: _Ran) -> list[str]:
    """Return what the model says of one and three processes and they did not do."""
    prices = Prices(put_seconds=0.01)
    expected = plan("store", three.rate, Costs(one.cpu / one.rate, 0.0, 0.0), _QUARTER, prices)
    assert expected.waiting == pytest.approx(three.rate * (0.125 + 0.01))
    wrong = []
    for ran, processes in ((one, 1), (three, 3)):
        puts = processes * objects_a_second(ran.rate / processes, _QUARTER)
        if ran.puts != pytest.approx(puts, rel=0.05):
            wrong.append(f"{ran.puts} PUTs a second by {processes}, expected {puts}")
    if three.cpu != pytest.approx(expected.cpu, rel=0.25):
        wrong.append(f"CPU {three.cpu}, expected {expected.cpu}")
    if not _QUARTER.linger < three.p99 < 1.3 * expected.p99:
        wrong.append(f"p99 {three.p99}, expected {expected.p99}")
    return wrong


def _new(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


async def _run(processes: int, folder: Path) -> _Ran:
    """Post to so many processes at the same time, for three seconds."""
    work, loads = WORKS["single"], list[Load]()
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(sink(folder, work.payload_bytes))
        running = [await _start(stack, _new(folder, f"p{n}"), store) for n in range(processes)]
        seen, _ = await settled(store, processes)
        objects = store.objects
        before = sum(proc.cpu_seconds(one.pid) for one in running)

        async def load(number: int) -> None:
            drive = replace(Drive(256, 3), pause=0.1)
            loads.append(await run_wrk(running[number].url, work, drive, folder / f"p{number}"))

        async with trio.open_nursery() as nursery:
            for number in range(processes):
                nursery.start_soon(load, number)
        cpu = sum(proc.cpu_seconds(one.pid) for one in running) - before
        stored, _ = await settled(store, seen + sum(one.answers for one in loads))
    seconds = max(one.seconds for one in loads)
    return _Ran(
        (stored - seen) / seconds,
        (store.objects - objects) / seconds,
        max(one.p99 for one in loads) / 1e6,
        cpu / seconds,
    )


async def _start(stack: AsyncExitStack, folder: Path, store: Sink) -> Running:
    running = await stack.enter_async_context(STORED.start(folder, store))
    await post_once(running.url, WORKS["single"].body())
    return running
