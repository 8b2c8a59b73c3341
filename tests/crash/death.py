"""The ways in which a daemon dies, each placed by what can be seen of it from outside."""

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

    from tests.crash.plan import Death
    from tests.crash.posting_clients import PostingClients
    from tests.crash.proxy import Proxy
    from tests.support.daemon import Daemon

_WITHIN: Final = 20.0
"""Seconds in which the moment has to come; without it the daemon is killed all the same."""
_GLANCE: Final = 0.0002
YOUNG: Final[frozenset[Death]] = frozenset({"while starting", "put again, not settled"})
"""Before it listens: nobody can post to it, what it does is replay."""
_WAL_INDEX_HEADER: Final = 48


@dataclass
class Scene:
    """Where a daemon lives and dies."""

    daemon: Daemon
    state: Path
    proxy: Proxy
    clients: PostingClients
    rng: random.Random

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.daemon.process.kill()


@dataclass(frozen=True)
class Met:
    """How it went: whether the moment came in time, and the key, if it was a PUT's."""

    came: bool = True
    key: str = ""


async def die_young(death: Death, scene: Scene) -> Met:
    """Kill a daemon that is starting."""
    if death == "put again, not settled":
        return await _at_a_put(scene, Moment.STORED)
    await trio.sleep(scene.rng.uniform(0.3, 1.2))
    scene.kill()
    return Met()


async def die(death: Death, scene: Scene) -> Met:
    """Kill a daemon that is at work, or send it SIGTERM."""
    await scene.clients.wait_for_acknowledgements(scene.rng.randrange(10, 60))
    match death:
        case "sealed, not put":
            return await _at_a_put(scene, Moment.SEEN)
        case "put, not settled":
            return await _at_a_put(scene, Moment.STORED)
        case "commit begun":
            return await _at_a_change(scene, _last_write)
        case "committed, not answered":
            return await _at_a_change(scene, _last_commit)
        case "at a random moment":
            await trio.sleep(scene.rng.uniform(0.0, 1.5))
        case "SIGTERM":
            scene.daemon.signal(signal.SIGTERM)
            return Met()
        case "while draining":
            scene.daemon.signal(signal.SIGTERM)
            await scene.daemon.wait_for_event("draining")
            await trio.sleep(scene.rng.uniform(0.0, 0.3))
        case "while starting" | "put again, not settled":
            raise AssertionError("too late for that")
        case _:
            assert_never(death)
    scene.kill()
    return Met()


async def _at_a_put(scene: Scene, moment: Moment) -> Met:
    """Kill it, from inside the proxy, at the moment of its next PUT."""
    trap = scene.proxy.arm(moment, scene.kill)
    with trio.move_on_after(_WITHIN):
        await trap.sprung.wait()
    scene.proxy.disarm()
    scene.kill()
    return Met(trap.sprung.is_set(), trap.key)


async def _at_a_change(scene: Scene, glance: Callable[[Path], object]) -> Met:
    """Kill it when ``glance`` sees something new while requests are under way."""
    before = glance(scene.state)
    with trio.move_on_after(_WITHIN) as waiting:
        # Its files can only be asked.
        while (now := glance(scene.state)) == before or not scene.clients.under_way:
            before = now
            await trio.sleep(_GLANCE)
    scene.kill()
    return Met(came=not waiting.cancelled_caught)


def _last_write(state: Path) -> object:
    """Return when SQLite's log was last written: a commit writes it, and syncs it."""
    try:
        return (state / "journal.db-wal").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _last_commit(state: Path) -> object:
    """Return the header of SQLite's WAL index, which changes when a commit is done.

    It is the last thing of a commit, behind the sync (https://www.sqlite.org/walformat.html,
    section 2.1). Read as a file: a connection of our own would take locks.
    """
    try:
        with (state / "journal.db-shm").open("rb", buffering=0) as index:
            return index.read(_WAL_INDEX_HEADER)
    except FileNotFoundError:
        return b""
