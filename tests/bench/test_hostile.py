"""Hostile clients send the requests of their kind, and the figures are right."""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import pytest
import trio
import zstandard

from tests.bench.hostile import bodies, http2
from tests.bench.hostile.answers import AnswerReader
from tests.bench.hostile.clients import HalfSender, Http2Poster, Leaver, Repeater, Round, Trickler
from tests.bench.hostile.engine import Engine
from tests.bench.hostile.kinds import KINDS
from tests.bench.hostile.outcome import (
    Outcome,
    Times,
    count_disk_errors,
    latencies,
    longest_gap,
    percentile,
)
from tests.support.daemon import running_daemon

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.bench.hostile.clients import Client

pytestmark = pytest.mark.no_cover

OUTCOME = Outcome(
    kind="some",
    batches="one payload",
    honest={"202": 100},
    p50=0.001,
    p99=0.050,
    longest=0.250,
    quiet_p99=0.001,
    watchdog_gap=10.0,
    peak_rss=470 * 2**20,
    rss_after=149 * 2**20,
    cpu_seconds=1.0,
    load_cpu_seconds=1.0,
    honest_cpu_seconds=1.0,
    tally={},
    disk_errors=0,
    errors={},
    ended=False,
)


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (bodies.deep, bodies.MAX_LENGTH),
        (bodies.too_deep, bodies.MAX_LENGTH),
        (bodies.most_members, bodies.MAX_LENGTH),
        (bodies.one_wide_payload, bodies.MAX_LENGTH),
        (bodies.gzip_members, bodies.MAX_LENGTH),
        (bodies.zstd_frames, bodies.MAX_LENGTH),
        (partial(bodies.telemetry, 100_000), 100_000),
        (partial(bodies.spaces, 1000), 1000),
    ],
)
def test_bodies_are_as_long_as_allowed(body: Callable[[], bytes], length: int) -> None:
    """The benchmark would send less than a client may send, or measure nothing but a 413."""
    assert length - 2000 < len(body()) <= length


def test_bodies_are_valid_as_documented() -> None:
    """The benchmark would measure the refusal of an invalid document."""
    assert json.loads(bodies.members(1000))["payloads"] == [1] * 1000
    # Checked without building objects, because json.loads is slow for 8,000,000 arrays.
    deep = msgspec.json.decode(bodies.deep(), type=dict[str, list[msgspec.Raw]])
    assert len(deep["payloads"]) > 9000
    for line in bodies.telemetry(10_000).splitlines():
        json.loads(line)
    gzipped = bodies.gzip_members()
    assert zlib.decompress(gzipped[-22:], wbits=31) == b"1\n"
    reader = zstandard.ZstdDecompressor().stream_reader(
        bodies.zstd_frames()[-110:], read_across_frames=True
    )
    assert reader.read(100) == b"1\n"
    assert json.loads(zlib.decompress(bodies.gzipped(bodies.spaces(5000)), wbits=31)) == {
        "payloads": [1]
    }


@pytest.mark.parametrize(
    "name",
    ["members", "large", "slow-heads", "h2-reset", "tls-hellos", "idle", "busy-posts", "churn"],
)
def test_a_kind_makes_a_client_for_each_connection(name: str) -> None:
    """Two connections would send halves of one request."""
    make = KINDS[name].prepare(Counter())
    first, second = make(), make()
    assert first is not second
    assert bytes(first.next_bytes()) == bytes(second.next_bytes())


def test_a_chunked_body_is_the_same_body() -> None:
    """The benchmark would measure the refusal of a malformed chunk."""
    request = bodies.post_chunked(b"1\n" * 100, bodies.NDJSON, size=64)
    head, _, chunks = request.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    pieces = re.findall(rb"([0-9a-f]+)\r\n([1\n]*)\r\n", chunks)
    assert [int(size, 16) for size, _ in pieces] == [len(piece) for _, piece in pieces]
    assert b"".join(piece for _, piece in pieces) == b"1\n" * 100


def test_answers_split_at_any_byte_are_counted() -> None:
    """Refusals would be counted under another name, or not at all."""
    stream = (
        b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\n{}"
        b'HTTP/1.1 503 Service Unavailable\r\nContent-Length: 18\r\n\r\n{"code":"BUSY","a"'
        b"HTTP/1.1 200 OK\r\n\r\n"
    )
    for size in range(1, len(stream)):
        tally: Counter[str] = Counter()
        reader = AnswerReader(tally)
        pieces = (stream[start : start + size] for start in range(0, len(stream), size))
        assert sum(map(reader.feed, pieces)) == 3
        assert tally == {"202": 1, "503 BUSY": 1, "200": 1}


def test_frames_split_at_any_byte_are_read() -> None:
    """Windows would be lost, and an HTTP/2 client would stop sending."""
    stream = http2.settings(2) + http2.pings(2) + http2.requests([1, 3], reset=True)
    for size in range(1, 30):
        reader = http2.FrameReader()
        pieces = (stream[start : start + size] for start in range(0, len(stream), size))
        frames = [frame for piece in pieces for frame in reader.feed(piece)]
        assert [http2.NAMES[kind] for kind, _, _, _ in frames] == [
            *("SETTINGS", "SETTINGS", "PING", "PING"),
            *("HEADERS", "RST_STREAM", "HEADERS", "RST_STREAM"),
        ]
        assert [stream for _, _, stream, _ in frames] == [0, 0, 0, 0, 1, 1, 3, 3]


async def test_every_client_reaches_a_real_daemon(tmp_path: Path) -> None:
    """A kind would send nothing, and its figures would be those of an idle machine."""
    tallies = {name: Counter[str]() for name in ("repeat", "h2", "slow", "half", "churn")}
    together = Round(3)
    half = bodies.post_without_body(10_000) + b" " * 9999
    makers: dict[str, Callable[[], Client]] = {
        "repeat": partial(
            Repeater, tallies["repeat"], [bodies.post(bodies.members(10), bodies.JSON)]
        ),
        "h2": partial(Http2Poster, tallies["h2"], bodies.telemetry(100_000), 2),
        "slow": partial(Trickler, tallies["slow"], b"BREW / HTTP/1.1\r\n", b"\r\n", 0.1),
        "half": partial(HalfSender, together, half),
        "churn": Leaver,
    }
    async with running_daemon(tmp_path) as daemon:
        port = int(daemon.url.rpartition(":")[2])
        seconds = 2.0
        with trio.move_on_after(120):
            while not _reached(tallies, together):
                async with trio.open_nursery() as nursery:
                    for name, make in makers.items():
                        engine = Engine(port, 3, make, tallies[name])
                        nursery.start_soon(trio.to_thread.run_sync, engine.run, seconds)
                # On a slow machine no HTTP/2 request ends before its client does.
                seconds *= 2
    assert _reached(tallies, together), tallies


def _reached(tallies: dict[str, Counter[str]], together: Round) -> bool:
    """Return, for each kind of client, whether it did its work."""
    return (
        tallies["repeat"]["202"] > 0
        and tallies["h2"]["202"] > 0
        and tallies["slow"]["400 MALFORMED"] > 0
        and together.number > 0
        and tallies["half"]["connections"] > 3
        and tallies["churn"]["connections"] > 3
    )


def test_posts_that_began_before_the_attack_and_waited_for_it_count() -> None:
    """The longest wait, of a POST that was under way, would be in no figure."""
    times = Times(begin=10.0, end=20.0, over=30.0)
    samples = [(8.0, 1.0, "202"), (9.0, 7.0, "202"), (15.0, 0.1, "202"), (21.0, 9.0, "202")]
    beside, waits, longest = latencies(samples, times)
    assert [sample[0] for sample in beside] == [9.0, 15.0]
    assert waits == [0.1, 7.0]
    assert longest == 9.0


def test_percentiles_are_measured_values() -> None:
    """A percentile between two values would hide a wait of a second."""
    values = [float(number) for number in range(1000)]
    assert percentile(values, 0.5) == 500.0
    assert percentile(values, 0.99) == 990.0
    assert percentile([], 0.5) == 0.0


@pytest.mark.parametrize(
    ("beats", "gap"),
    [([], 20.0), ([9.0, 12.0, 29.0], 17.0), ([1.0, 12.0, 22.0], 11.0), ([9.0, 31.0], 21.0)],
)
def test_the_longest_time_without_a_watchdog_message_is_found(
    beats: list[float], gap: float
) -> None:
    """A daemon that systemd would have killed would look alive."""
    assert longest_gap(beats, Times(begin=10.0, end=20.0, over=30.0)) == gap


def test_missed_goals_are_named() -> None:
    """A daemon that makes its clients wait would pass."""
    assert OUTCOME.missed() == []
    assert OUTCOME.row()["goals missed"] == "none"
    worse = replace(
        OUTCOME,
        p99=0.051,
        longest=0.251,
        watchdog_gap=10.1,
        peak_rss=471 * 2**20,
        rss_after=150 * 2**20,
        honest={"202": 99, "503 BUSY": 1},
        disk_errors=1,
        ended=True,
    )
    assert worse.missed() == [
        *("p99", "max", "watchdog", "peak", "RSS after", "refused", "DISK_ERROR", "alive")
    ]
    assert "503 BUSY: 1" in worse.row()["other answers"]
    assert replace(OUTCOME, p99=0.9, longest=1.0, more_than_slots=True).missed() == []
    assert replace(OUTCOME, longest=1.1, more_than_slots=True).missed() == ["max"]
    assert count_disk_errors({"503 DISK_ERROR": 2, "202": 1}, {"503 DISK_ERROR": 1}) == 3
