"""End a daemon at a chosen moment, which is observed from outside the process."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, assert_never

import trio

from tests.crash.proxy import Moment

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

    from tests.crash.plan import Ending
    from tests.crash.posting_clients import PostingClients
    from tests.crash.proxy import Proxy
    from tests.support.daemon import Daemon

_WITHIN: Final = 60.0
"""Seconds to wait for the moment; if it does not come, the daemon is killed anyway."""
_POLL_INTERVAL: Final = 0.0002
BEFORE_LISTENING: Final[frozenset[Ending]] = frozenset({"while starting", "put again, not settled"})
"""Endings before the daemon listens, while it replays its journal and accepts no POST."""
_WAL_INDEX_HEADER: Final = 48


@dataclass
class RunningDaemon:
    """A daemon, its journal, the proxy before its store, and its clients."""

    daemon: Daemon
    state: Path
    proxy: Proxy
    clients: PostingClients
    rng: random.Random

    def kill(self) -> None:
        """Send SIGKILL to the daemon."""
        self.daemon.process.kill()


@dataclass(frozen=True)
class EndResult:
    """Whether the moment came in time, and the object's key if it was a moment of a PUT."""

    reached: bool = True
    key: str = ""


async def end_while_starting(ending: Ending, running: RunningDaemon) -> EndResult:
    """Kill a daemon before it listens."""
    if ending == "put again, not settled":
        return await _at_a_put(running, Moment.STORED)
    await trio.sleep(running.rng.uniform(0.3, 1.2))
    running.kill()
    return EndResult()


async def end_at_work(ending: Ending, running: RunningDaemon) -> EndResult:
    """Kill a daemon that serves clients, or send it SIGTERM."""
    await running.clients.wait_for_acknowledgements(running.rng.randrange(10, 60))
    match ending:
        case "sealed, not put":
            return await _at_a_put(running, Moment.SEEN)
        case "put, not settled":
            return await _at_a_put(running, Moment.STORED)
        case "commit begun":
            return await _at_a_change(running, _last_write)
        case "committed, not answered":
            return await _at_a_change(running, _last_commit)
        case "at a random moment":
            await trio.sleep(running.rng.uniform(0.0, 1.5))
        case "SIGTERM":
            running.daemon.signal(signal.SIGTERM)
            return EndResult()
        case "while draining":
            # What is accepted from here on is not stored before the kill, so the drain goes on.
            running.proxy.hold_answers()
            await running.clients.wait_for_acknowledgements(1)
            running.daemon.signal(signal.SIGTERM)
            await running.daemon.wait_for_event("draining")
            await trio.sleep(running.rng.uniform(0.0, 0.3))
            running.kill()
            running.proxy.release_answers()
        case "while starting" | "put again, not settled":
            raise AssertionError("the daemon listens already")
        case _:
            assert_never(ending)
    running.kill()
    return EndResult()


async def _at_a_put(running: RunningDaemon, moment: Moment) -> EndResult:
    """Kill the daemon, from inside the proxy, at a moment of its next PUT."""
    trap = running.proxy.arm(moment, running.kill)
    with trio.move_on_after(_WITHIN):
        await trap.sprung.wait()
    running.proxy.disarm()
    running.kill()
    return EndResult(trap.sprung.is_set(), trap.key)


async def _at_a_change(running: RunningDaemon, read_state: Callable[[Path], object]) -> EndResult:
    """Kill the daemon when ``read_state`` returns a new value while requests are under way."""
    before = read_state(running.state)
    with trio.move_on_after(_WITHIN) as waiting:
        # The files can only be polled.
        while (now := read_state(running.state)) == before or not running.clients.under_way:
            before = now
            await trio.sleep(_POLL_INTERVAL)
    running.kill()
    return EndResult(reached=not waiting.cancelled_caught)


def _last_write(state: Path) -> object:
    """Return when SQLite's write-ahead log was written; a commit writes and syncs it."""
    try:
        return (state / "journal.db-wal").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _last_commit(state: Path) -> object:
    """Return the header of SQLite's WAL index, which changes when a commit is done.

    SQLite writes it at the end of a commit, after the sync (https://www.sqlite.org/walformat.html,
    section 2.1). It is read as a file, because a connection would take locks.
    """
    try:
        with (state / "journal.db-shm").open("rb", buffering=0) as index:
            return index.read(_WAL_INDEX_HEADER)
    except FileNotFoundError:
        return b""
