"""The benchmark runs, its figures are consistent, and it notices lost payloads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
import trio

from tests.bench import growth, latency, measure, shared
from tests.bench.__main__ import main
from tests.bench.clients import part as clients_part
from tests.bench.clients.kinds import KINDS
from tests.bench.formats import COLUMNS, Events
from tests.bench.hostile import part as hostile_part
from tests.bench.load import Drive, Load, Work
from tests.bench.measure import Result, settled
from tests.bench.peers import PEERS
from tests.bench.report import difference, ratio
from tests.bench.sink import Sink, payloads_in
from tests.support import proc, tools
from tests.support.postgres import need_postgres
from tests.support.tools import need_tools

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.no_cover

WORK = Work("some", 3, 100)


@pytest.fixture
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the parts that make figures exact and take long."""
    need_tools("nginx", "wrk")
    monkeypatch.setattr(measure, "QUIET", 1.2)  # still longer than BATCH_LINGER
    monkeypatch.setattr(growth, "CONNECTIONS", (2,))
    monkeypatch.setattr(latency, "TRIES", 1)
    monkeypatch.setattr(hostile_part, "QUIET", 0.2)
    monkeypatch.setattr(hostile_part, "AFTER", 0.2)
    monkeypatch.setattr(clients_part, "IDLE_CONNECTIONS", 50)


@pytest.mark.large
@pytest.mark.usefixtures("brisk")
async def test_a_short_run_of_all_parts_succeeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be unknown whether a change makes the daemon slower."""
    parts = {
        "peers": ["--work=single", "--peer=batched", "--peer=straight", "--most-payloads=100"],
        "growth": [],
        "latency": [],
        "backlog": ["--jobs=2345"],
        "pair": [],
        "streams": [],
        "hostile": ["--kind=members", "--kind=h2-headers", "--kind=slow-heads"],
    }
    # Each part runs trio itself, so each gets a thread; the threads mostly wait.
    async with trio.open_nursery() as nursery:
        for part, more in parts.items():
            options = [f"--part={part}", f"--results={tmp_path / part}", *more]
            options += ["--rounds=1", "--duration=1", "--connections=4"]
            nursery.start_soon(trio.to_thread.run_sync, main, options)

    errors = capsys.readouterr().err
    for part in parts:
        figures = json.loads((tmp_path / part / "figures.json").read_text())
        table = (tmp_path / part / "table.md").read_text()
        assert figures or "left out: two processes on one socket" in errors, part
        assert all(title in table for title in figures)
    (compared,) = json.loads((tmp_path / "peers" / "figures.json").read_text()).values()
    assert [one["peer"] for one in compared] == [PEERS["batched"].name, PEERS["straight"].name]
    for one in compared:
        assert 0 < one["load"]["answers"] - one["load"]["refused"] <= one["stored"]
        assert one["cpu_us"] > 1
        assert 2**20 < one["idle_rss"] <= one["peak_rss"]
    assert compared[0]["objects"] < compared[0]["stored"]
    assert compared[1]["objects"] == compared[1]["stored"] <= 100
    (guarded,) = json.loads((tmp_path / "streams" / "figures.json").read_text()).values()
    assert [one["load"]["refused"] for one in guarded] == [0, 0]
    (attacked,) = json.loads((tmp_path / "hostile" / "figures.json").read_text()).values()
    assert [one["kind"] for one in attacked] == ["members", "members", "h2-headers", "slow-heads"]
    for one in attacked:
        assert one["honest"]
        assert one["tally"]["connections"] > 0
        # The kernel updates the peak with a delay, so it may be a little below the current value.
        assert 2**20 < one["rss_after"] <= one["peak_rss"] + 2**20
        assert 0 < one["p50"] <= one["p99"] <= one["longest"]
    plot = tmp_path / "peers" / "plot.png"
    assert plot.exists() or "pip install -e '.[bench]'" in errors
    assert plot.exists() == (find_spec("matplotlib") is not None)


@pytest.mark.large
@pytest.mark.usefixtures("brisk")
async def test_the_shared_journal_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cost of the shared journal would be an assumption."""
    need_postgres()
    monkeypatch.setattr(shared, "LOADS", (("hundred", 4),))
    monkeypatch.setattr(shared, "STORE_CONNECTIONS", 50)
    options = ["--part=shared", "--rounds=1", "--duration=1", f"--results={tmp_path}"]
    assert await trio.to_thread.run_sync(partial(main, options)) == 0
    costs, answers = json.loads((tmp_path / "figures.json").read_text()).values()
    assert [one["stored"] > 0 for one in costs] == [True, True]
    assert costs[1]["beside_cpu_seconds"] > 0.01
    assert all(ones[0]["half"]["refused"] == 0 for ones in answers.values())
    assert len(answers) == 3


@pytest.mark.large
@pytest.mark.usefixtures("brisk")
async def test_forms_of_clients_are_served(tmp_path: Path) -> None:
    """A row of the table would be of refusals, or missing."""
    if missing := clients_part.missing():
        pytest.skip(missing)
    names = ["close", "expect", "pipelined", "http2"]
    assert KINDS.keys() > {*names}
    options = [f"--client={name}" for name in names]
    run = partial(
        main,
        [
            "--part=clients",
            "--rounds=1",
            "--duration=1",
            "--connections=4",
            *options,
            f"--results={tmp_path}",
        ],
    )
    assert await trio.to_thread.run_sync(run) == 0
    costs, memory = json.loads((tmp_path / "figures.json").read_text()).values()
    assert {one["kind"] for one in costs} == set(names)
    for one in costs:
        assert one["refused"] == one["broken"] == 0
        assert one["answers"] > 0
    assert memory[0]["connections"] == 50


@pytest.mark.large
@pytest.mark.usefixtures("brisk")
async def test_formats_are_compared(tmp_path: Path) -> None:
    """The CPU time of the process that encodes would not count, or requests be refused."""
    options = ["--part=formats", "--rounds=1", "--duration=1", "--connections=4"]
    run = partial(main, [*options, f"--results={tmp_path}"])
    assert await trio.to_thread.run_sync(run) == 0
    costs, small = json.loads((tmp_path / "figures.json").read_text()).values()
    assert [one["peer"] for one in costs] == ["NDJSON.zst", "Parquet"] * 2
    for one in costs:
        assert one["load"]["answers"] > one["load"]["refused"] == one["load"]["broken"] == 0
        assert 0 <= one["children_cpu_seconds"] <= one["cpu_seconds"]
        assert (one["peer"] == "Parquet") or one["children_cpu_seconds"] == 0
    for plain, encoded in (costs[:2], costs[2:]):
        assert encoded["peak_rss"] > plain["peak_rss"], "there is no process that encodes"
    assert [one["peer"] for one in small] == ["NDJSON.zst", "Parquet"]
    for one in small:
        for load in (one["small"], one["large"]):
            assert load["answers"] > load["refused"] == load["broken"] == 0


def test_the_cpu_time_of_children_is_counted() -> None:
    """Parquet would cost nothing: a process of its own encodes."""
    script = "import sys, time\nwhile time.process_time() < 0.2: pass\nprint(); sys.stdin.read()"
    before = proc.children_cpu_seconds(os.getpid())
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert proc.children_cpu_seconds(os.getpid()) >= before + 0.15
        assert proc.children_cpu_seconds(child.pid) == 0
        child.communicate()


@pytest.mark.usefixtures("brisk")
@pytest.mark.parametrize(
    ("option", "packages"),
    [
        ("--part=clients", "golang-go"),
        ("--peer=go", "golang-go golang-github-aws-aws-sdk-go-dev"),
    ],
)
async def test_what_needs_a_compiler_is_left_out_without_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    packages: str,
) -> None:
    """The benchmark would fail on a machine without Go, or silently lack a part or a peer."""
    monkeypatch.setenv("PATH", "/nonexistent")
    run = partial(main, [option, f"--results={tmp_path}"])
    assert await trio.to_thread.run_sync(run) == 0
    assert f"apt-get install {packages}" in capsys.readouterr().err


def test_missing_programs_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new user would have to guess which programs to install."""
    monkeypatch.setattr(tools, "SEARCH_PATH", "/nonexistent")
    assert main([]) == 2
    assert "apt-get install nginx-light wrk" in capsys.readouterr().err


def test_every_payload_has_the_configured_length() -> None:
    """The store could not count payloads by the length of an object."""
    payloads = json.loads(WORK.body())["payloads"]
    assert len({one["id"] for one in payloads}) == 3
    assert [json.dumps(one, separators=(",", ":")) for one in payloads] == [
        WORK.payload(index) for index in range(3)
    ]
    assert {len(WORK.payload(index)) for index in range(3)} == {100}


@pytest.mark.parametrize(
    ("line", "payloads"), [(b"PUT 100", 1), (b"PUT 101", 1), (b"PUT 505", 5), (b"PUT 504", 5)]
)
def test_the_store_counts_payloads(line: bytes, payloads: int) -> None:
    """A daemon would be credited with more or fewer payloads than it stored."""
    assert payloads_in(line, 100) == payloads


def test_the_store_counts_payloads_of_compressed_objects() -> None:
    """Nothing would notice a daemon that loses payloads where objects are compressed."""
    assert payloads_in(b"PUT 99 7", None) == 7
    assert payloads_in(b"PUT 505 7", 100) == 5


def test_payloads_of_formats_differ_and_fill_all_columns() -> None:
    """Parquet would be measured with columns of one value, or of none."""
    work = Events("some", 3, 250, bodies=2)
    payloads = [json.loads(work.body(number))["payloads"] for number in range(2)]
    found = [json.dumps(one, separators=(",", ":")) for two in payloads for one in two]
    assert len(set(found)) == 6
    assert {len(one) for one in found} == {250}
    assert found == [work.payload(index) for index in range(6)]
    names = {line.split()[0] for line in COLUMNS.splitlines()}
    assert len(names) == 8
    assert names - {"country"} < {*payloads[0][0]}


@pytest.mark.parametrize("line", [b"PUT 99", b"PUT 150", b"PUT 503", b"GET 100", b"PUT 0"])
def test_the_store_notices_incomplete_payloads(line: bytes) -> None:
    """A daemon that stores half of a payload would look like the fastest."""
    with pytest.raises(AssertionError):
        payloads_in(line, 100)


async def test_lost_payloads_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that loses payloads would look like the fastest."""
    monkeypatch.setattr(measure, "QUIET", 0.0)
    log = tmp_path / "puts.log"
    log.write_text("PUT 505\nPUT 101\nPUT 3")  # the last line is incomplete
    store = Sink("http://127.0.0.1", 1, log, payload_bytes=100)
    assert (await settled(store, 6, 0.5))[0] == 6
    with pytest.raises(AssertionError, match="the store got 6 payloads of 7"):
        await settled(store, 7, 0.5)


def test_ratio_and_difference_are_taken_within_a_round() -> None:
    """If the machine is slow in one round, one of the daemons would look slow."""
    slow_machine = [_result(20.0), _result(200.0), _result(22.0)]
    base = [_result(10.0), _result(100.0), _result(10.0)]
    assert ratio(slow_machine, base) == pytest.approx(2.0)
    assert difference(slow_machine, base) == pytest.approx(12.0)


def _result(cpu_us: float) -> Result:
    load = Load(answers=10, refused=0, broken=0, seconds=1.0, p50=1, p99=2, cpu_seconds=0.0)
    return Result(
        peer="some",
        work=WORK,
        drive=Drive(),
        load=load,
        stored=30,
        objects=30,
        cpu_seconds=30 * cpu_us / 1e6,
        idle_rss=1,
        peak_rss=1,
        seconds=1.0,
        sink_cpu_seconds=0.0,
    )
