"""Watermarks of a daemon: over a crash, a drain, and a clock that is put back."""

from __future__ import annotations

import json
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.clients import post
from tests.support.clock_step import clock_step
from tests.support.daemon import running_daemon
from tests.support.databases import new_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from tests.support.daemon import Daemon

pytestmark = pytest.mark.no_cover

Watermarks = dict[str, dict[str, Any]]
"""The documents of all streams, by stream."""


def environment(folder: Path, step: int) -> dict[str, str]:
    """Return the settings of a daemon whose clock is ``step`` seconds off."""
    return {
        **clock_step(folder, step),
        "WATERMARK": "on",
        "STREAMS": "clicks",
        "BATCH_LINGER": "50ms",
    }


def watermarks(folder: Path) -> Watermarks:
    """Return the watermarks in the store by stream."""
    paths = (folder / "payloadd-data" / "objects" / "_watermarks").glob("*/*.json")
    return {path.parent.name: json.loads(path.read_bytes()) for path in paths}


def hours(folder: Path) -> set[str]:
    """Return the dates and hours of the stored payloads, as their folders are named."""
    paths = (folder / "payloadd-data" / "objects" / "default").rglob("*.ndjson")
    return {path.parent.relative_to(path.parents[2]).as_posix() for path in paths}


async def store_and_drain(folder: Path, environ: Mapping[str, str]) -> Watermarks:
    """Run a daemon that stores one payload and drains; return the watermarks of its start."""
    async with running_daemon(folder, environ) as daemon:
        first = watermarks(folder)
        assert set(first) == {"default", "clicks"}
        assert not any(one["closed"] for one in first.values())
        await post(daemon.url, [b"1"])
        await daemon.wait_until_stored(1)
        daemon.signal(signal.SIGTERM)
        await daemon.drained()
    closed = watermarks(folder)
    assert all(one["closed"] for one in closed.values())
    assert closed["default"]["complete_until"] > first["default"]["complete_until"]
    return first


@asynccontextmanager
async def running_with_clock_put_back(
    folder: Path, environ: Mapping[str, str]
) -> AsyncIterator[Daemon]:
    """Run a daemon after ``store_and_drain`` and store a payload; nothing falls back behind it."""
    before, closed = hours(folder), watermarks(folder)
    async with running_daemon(folder, environ) as daemon:
        again = watermarks(folder)
        assert not any(one["closed"] for one in again.values())
        assert again["default"]["complete_until"] >= closed["default"]["complete_until"]
        await post(daemon.url, [b"2"])
        await daemon.wait_until_stored(1)
        yield daemon
    assert min(hours(folder)) == min(before)


async def test_watermarks_hold_over_a_crash_a_drain_and_a_clock_that_is_put_back(
    tmp_path: Path,
) -> None:
    """A reader would take an hour for complete into which payloads are still accepted."""
    first = await store_and_drain(tmp_path, environment(tmp_path, 0))
    behind = environment(tmp_path, -86_400)
    async with running_with_clock_put_back(tmp_path, behind) as daemon:
        again = watermarks(tmp_path)
        daemon.signal(signal.SIGKILL)
        await daemon.wait()
    assert watermarks(tmp_path) == again
    async with running_daemon(tmp_path, behind) as daemon:
        daemon.signal(signal.SIGTERM)
        await daemon.drained()
    last = watermarks(tmp_path)
    assert all(one["closed"] for one in last.values())
    assert last["default"]["complete_until"] > again["default"]["complete_until"]
    assert len({one["process"] for one in (*first.values(), *last.values())}) == 1


async def test_watermarks_of_a_lane_hold_over_a_drain_and_a_clock_that_is_put_back(
    tmp_path: Path,
) -> None:
    """A lane goes to any process of a fleet, whose clock may be behind that of the last one."""
    shared = {"JOURNAL_URL": new_database()}
    first = await store_and_drain(tmp_path, environment(tmp_path, 0) | shared)
    behind = environment(tmp_path, -86_400) | shared
    async with running_with_clock_put_back(tmp_path, behind) as daemon:
        daemon.signal(signal.SIGTERM)
        await daemon.drained()
    last = watermarks(tmp_path)
    assert all(one["closed"] for one in last.values())
    assert len({one["process"] for one in (*first.values(), *last.values())}) == 1
