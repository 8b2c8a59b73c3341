"""The torture: one STATE_DIR, one bucket, sixteen clients, many short lives."""

from __future__ import annotations

import gzip
import signal
from collections import Counter
from itertools import cycle
from typing import TYPE_CHECKING, Final

import trio
import zstandard

from tests.crash.death import YOUNG, Met, Scene, die, die_young
from tests.crash.journal_copy import Remains, examine
from tests.crash.posting_clients import PostingClients
from tests.crash.promises import Promises
from tests.crash.proxy import Proxy, s3_proxy
from tests.crash.store_faults import StoreFaults, open_store_faults
from tests.support.clients import seeded
from tests.support.daemon import START_WITHIN, Daemon, started

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.crash.plan import Life
    from tests.support.s3 import S3Server

_CLIENTS: Final = 16
_KILLED: Final = frozenset({-signal.SIGKILL})
# A drain may be faster than the kill that was meant for it.
_STATUS: Final = {"SIGTERM": frozenset({0}), "while draining": frozenset({0, -signal.SIGKILL})}
_SMALL: Final = {
    "MAX_WORKERS": "4",
    "MAX_QUEUE": "20",
    "MAX_QUEUE_BYTES": "16KiB",
    "MAX_LENGTH": "16KiB",
    "JOURNAL_MAX_BYTES": "48KiB",
    "BATCH_MAX_BYTES": "2KiB",
    "BATCH_LINGER": "30ms",
    "UPLOAD_TIMEOUT": "1s",
    "DRAIN_TIMEOUT": "1s",
}


class Stage:
    """Where the daemon lives, one life after the other."""

    def __init__(
        self,
        folder: Path,
        command: Sequence[str],
        bucket: str,
        proxy: Proxy,
        faults: StoreFaults,
        clients: PostingClients,
        promises: Promises,
    ) -> None:
        self._folder = folder
        self._command = command
        self._state = folder / "state"
        self._bucket = bucket
        self._proxy = proxy
        self._faults = faults
        self._clients = clients
        self._promises = promises
        self.tally: Counter[str] = Counter()
        """How often which death was met, and missed; payloads found committed and unanswered;
        segments with jobs in them."""

    async def live(self, life: Life, habits: Mapping[str, str], seed: int) -> None:
        """Start a daemon with ``habits``, have it work and die, and look into its journal."""
        if life.death in YOUNG:
            await self._faults.turn(life.weather)
            await self._faults.wait_until_fair()
        async with started(self._folder, self._environ(habits), self._command) as daemon:
            scene = Scene(daemon, self._state, self._proxy, self._clients, seeded(seed))
            if life.death in YOUNG:
                met = await die_young(life.death, scene)
            else:
                met = await self._work_and_die(life, scene)
            self._clients.move(None)
            await self._bury(life, daemon, met)

    async def end(self, habits: Mapping[str, str]) -> None:
        """Let the last daemon finish its work: nothing may be left behind."""
        await self._faults.end()
        async with started(self._folder, self._environ(habits), self._command) as daemon:
            await daemon.wait_for_event("listening", START_WITHIN)
            self._clients.move(daemon.url)
            self._clients.disperse()
            await self._clients.wait_until_gone()
            await _wait_until_stored(daemon)
            daemon.signal(signal.SIGTERM)
            line = await daemon.drained()
        assert daemon.process.returncode == 0, daemon.output.decode()
        assert (line["journaled"], line["lost"]) == (0, 0)
        remains = await trio.to_thread.run_sync(examine, self._state)
        assert remains.empty, remains

    async def _work_and_die(self, life: Life, scene: Scene) -> Met:
        await scene.daemon.wait_for_event("listening", START_WITHIN)
        self._clients.move(scene.daemon.url)
        await self._faults.turn(life.weather)
        return await die(life.death, scene)

    async def _bury(self, life: Life, daemon: Daemon, met: Met) -> None:
        status = await daemon.wait()
        assert status in _STATUS.get(life.death, _KILLED), daemon.output.decode()
        loud = [line for line in daemon.log if line["level"] in {"error", "critical"}]
        assert not loud, loud
        remains = await trio.to_thread.run_sync(examine, self._state)
        self._look_at(remains)
        if status == 0:
            line = daemon.event("drained")
            assert (line["journaled"], line["lost"]) == (remains.payloads.total(), 0)
        if met.key:
            assert remains.answers_for(met.key), f"{met.key} would be put again elsewhere"
        hit = met.came and (life.death == "SIGTERM" or status != 0)
        self.tally[life.death if hit else f"{life.death} (missed)"] += 1

    def _look_at(self, remains: Remains) -> None:
        """Check what every journal holds, whenever it is looked at."""
        twice = [line for line, times in remains.payloads.items() if times > 1]
        assert not twice, f"twice in the journal: {twice}"
        refused = self._promises.refused & remains.payloads.keys()
        assert not refused, f"refused, and in the journal: {refused}"
        assert not remains.dead
        unanswered = remains.payloads.keys() - self._promises.acknowledged
        self.tally["(payloads committed, unanswered)"] += len(unanswered)
        self.tally["(segments found)"] += remains.segments

    def _environ(self, habits: Mapping[str, str]) -> dict[str, str]:
        return {
            **self._proxy.environ,
            **_SMALL,
            **habits,
            "STORE_URL": f"s3://{self._bucket}/some/prefix",
            "STATE_DIR": str(self._state),
        }


async def torture(
    folder: Path,
    server: S3Server,
    bucket: str,
    lives: Sequence[Life],
    habits: Sequence[Mapping[str, str]],
    seed: int,
    command: Sequence[str] = (),
) -> Counter[str]:
    """Live all ``lives``, with one of ``habits`` after the other; returns what was met.

    ``command`` starts the daemon, where it is not to be the usual one.
    Raises AssertionError if a promise was broken.
    """
    rng = seeded(seed)
    promises = Promises()
    clients = PostingClients(promises, rng)
    turns = cycle(habits)
    await trio.to_thread.run_sync(server.make_bucket, bucket)
    async with s3_proxy(server) as proxy, open_store_faults(server, proxy) as faults:
        stage = Stage(folder, command, bucket, proxy, faults, clients, promises)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clients.run, _CLIENTS)
            for number, life in enumerate(lives):
                try:
                    await stage.live(life, next(turns), rng.getrandbits(32))
                except Exception as error:
                    error.add_note(f"in life {number}: {life}")
                    raise
            await stage.end(next(turns))
    stored = read_bucket(await trio.to_thread.run_sync(server.objects, bucket))
    broken = promises.violations(stored)
    assert not broken, "\n".join([f"{len(broken)} promises broken:", *broken[:20]])
    assert promises.acknowledged
    await trio.to_thread.run_sync(server.drop_bucket, bucket)
    return stage.tally + clients.answers + Counter({"(lies)": proxy.lied})


def read_bucket(objects: Mapping[str, bytes]) -> Counter[bytes]:
    """Return every payload in these objects and how often it is there."""
    found: Counter[bytes] = Counter()
    for key, body in objects.items():
        text = _decode(key, body)
        assert text.endswith(b"\n"), f"{key} is cut off"
        found.update(text.removesuffix(b"\n").split(b"\n"))
    return found


def _decode(key: str, body: bytes) -> bytes:
    if key.endswith(".gz"):
        return gzip.decompress(body)
    if key.endswith(".zst"):
        return zstandard.ZstdDecompressor().decompressobj().decompress(body)
    return body


async def _wait_until_stored(daemon: Daemon) -> None:
    with trio.fail_after(120):
        # Its metrics can only be asked for.
        while (await daemon.metrics())["payloadd_journal_jobs"]:  # noqa: ASYNC110
            await trio.sleep(0.1)
