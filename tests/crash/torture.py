"""The torture: many short runs of the daemon with one STATE_DIR, one bucket and sixteen clients."""

from __future__ import annotations

import signal
from collections import Counter
from itertools import cycle
from typing import TYPE_CHECKING, Final

import trio

from tests.crash.bucket import BucketWatch, keys_that_share_payloads, read_bucket
from tests.crash.endings import (
    BEFORE_LISTENING,
    EndResult,
    RunningDaemon,
    end_at_work,
    end_while_starting,
)
from tests.crash.journal_copy import JournalContents, read_journal
from tests.crash.posting_clients import PostingClients
from tests.crash.promises import Promises
from tests.crash.proxy import Proxy, s3_proxy
from tests.crash.store_faults import StoreFaults, open_store_faults
from tests.support.clients import seeded
from tests.support.daemon import START_WITHIN, Daemon, started

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.crash.plan import DaemonRun
    from tests.support.s3 import S3Server

_CLIENTS: Final = 16
_WATERMARK_WITHIN: Final = 20.0
"""Seconds to wait for a watermark; the run goes on without one then."""
_KILLED: Final = frozenset({-signal.SIGKILL})
# A drain may end before the daemon is killed.
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


class Torture:
    """Runs the daemon again and again, and checks its journal after each run."""

    def __init__(
        self,
        folder: Path,
        command: Sequence[str],
        bucket: BucketWatch,
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
        """The number of each ending, of endings whose moment did not come, of payloads that were
        committed and not answered, and of segments with jobs."""

    async def run_daemon(self, run: DaemonRun, settings: Mapping[str, str], seed: int) -> None:
        """Run a daemon with ``settings`` until the ending of ``run``, and check its journal."""
        if run.ending in BEFORE_LISTENING:
            await self._faults.set_state(run.store_state)
            await self._faults.wait_until_working()
        async with started(self._folder, self._environ(settings), self._command) as daemon:
            running = RunningDaemon(daemon, self._state, self._proxy, self._clients, seeded(seed))
            if run.ending in BEFORE_LISTENING:
                result = await end_while_starting(run.ending, running)
            else:
                result = await self._work_and_end(run, running, settings)
            self._clients.set_url(None)
            contents = await self._check_after_end(run, daemon, result)
        if has_watermarks(settings):
            await self._faults.end()
            await self._check_bucket(contents)

    async def end(self, settings: Mapping[str, str]) -> None:
        """Run a daemon until all jobs are stored, drain it, and check that its journal is empty."""
        await self._faults.end()
        async with started(self._folder, self._environ(settings), self._command) as daemon:
            await daemon.wait_for_event("listening", START_WITHIN)
            self._clients.set_url(daemon.url)
            self._clients.stop()
            await self._clients.wait_until_stopped()
            await _wait_until_stored(daemon)
            daemon.signal(signal.SIGTERM)
            line = await daemon.drained()
        assert daemon.process.returncode == 0, daemon.output.decode()
        assert (line["journaled"], line["lost"]) == (0, 0)
        contents = await trio.to_thread.run_sync(read_journal, self._state)
        assert contents.empty, contents
        if has_watermarks(settings):
            await self._check_bucket(contents)
            self.tally["(watermark raised)"] = self._bucket.raised

    async def _work_and_end(
        self, run: DaemonRun, running: RunningDaemon, settings: Mapping[str, str]
    ) -> EndResult:
        await running.daemon.wait_for_event("listening", START_WITHIN)
        self._clients.set_url(running.daemon.url)
        if has_watermarks(settings):
            await self._proxy.wait_for_watermark(running.daemon.process, _WATERMARK_WITHIN)
        await self._faults.set_state(run.store_state)
        if run.store_state == "refuses batches":
            await self._clients.wait_for_acknowledgements(20)
            for _ in range(2):  # the first one may have been decided before
                process = running.daemon.process
                await self._proxy.wait_for_watermark(process, _WATERMARK_WITHIN)
        return await end_at_work(run.ending, running)

    async def _check_after_end(
        self, run: DaemonRun, daemon: Daemon, result: EndResult
    ) -> JournalContents:
        status = await daemon.wait()
        assert status in _STATUS.get(run.ending, _KILLED), daemon.output.decode()
        errors = [line for line in daemon.log if line["level"] in {"error", "critical"}]
        assert not errors, errors
        contents = await trio.to_thread.run_sync(read_journal, self._state)
        self._check_contents(contents)
        if status == 0:
            line = daemon.event("drained")
            assert (line["journaled"], line["lost"]) == (contents.payloads.total(), 0)
        if result.key:
            assert contents.will_upload_to(result.key), (
                f"{result.key} would be stored again under another key"
            )
        hit = result.reached and (run.ending == "SIGTERM" or status != 0)
        self.tally[run.ending if hit else f"{run.ending} (missed)"] += 1
        return contents

    async def _check_bucket(self, contents: JournalContents) -> None:
        """Check the watermarks, and that no object has changed since it was stored."""
        accepted = contents.accepted | self._promises.accepted
        wrong = await trio.to_thread.run_sync(self._bucket.look, accepted)
        assert not wrong, "\n".join([f"{len(wrong)} wrong in the bucket:", *wrong[:20]])

    def _check_contents(self, contents: JournalContents) -> None:
        """Check the rules that hold for a journal at any time."""
        twice = [line for line, times in contents.payloads.items() if times > 1]
        assert not twice, f"twice in the journal: {twice}"
        refused = self._promises.refused & contents.payloads.keys()
        assert not refused, f"refused, and in the journal: {refused}"
        assert not contents.dead
        unanswered = contents.payloads.keys() - self._promises.acknowledged
        self.tally["(payloads committed, unanswered)"] += len(unanswered)
        self.tally["(segments found)"] += contents.segments

    def _environ(self, settings: Mapping[str, str]) -> dict[str, str]:
        return {
            **self._proxy.environ,
            **_SMALL,
            **settings,
            "STORE_URL": f"s3://{self._bucket.bucket}/some/prefix",
            "STATE_DIR": str(self._state),
        }


def has_watermarks(settings: Mapping[str, str]) -> bool:
    """Return whether a daemon with these settings writes watermarks."""
    return settings.get("WATERMARK") == "on"


async def torture(
    folder: Path,
    server: S3Server,
    bucket: str,
    runs: Sequence[DaemonRun],
    settings: Sequence[Mapping[str, str]],
    seed: int,
    command: Sequence[str] = (),
) -> Counter[str]:
    """Run the daemon as in ``runs``, with ``settings`` in turn; returns counts of events.

    ``command`` starts another program than the installed daemon. Raises AssertionError if a promise
    was broken.
    """
    rng = seeded(seed)
    promises = Promises()
    clients = PostingClients(promises, rng)
    turns = cycle(settings)
    await trio.to_thread.run_sync(server.make_bucket, bucket)
    async with s3_proxy(server) as proxy, open_store_faults(server, proxy) as faults:
        watch = BucketWatch(server, bucket)
        runner = Torture(folder, command, watch, proxy, faults, clients, promises)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clients.run, _CLIENTS)
            for number, run in enumerate(runs):
                try:
                    await runner.run_daemon(run, next(turns), rng.getrandbits(32))
                except Exception as error:
                    error.add_note(f"in run {number}: {run}")
                    raise
            await runner.end(next(turns))
    objects = await trio.to_thread.run_sync(server.objects, bucket)
    broken = promises.violations(read_bucket(objects))
    sharing = keys_that_share_payloads(objects)
    assert not broken, "\n".join([f"{len(broken)} promises broken:", *sharing[:20], *broken[:20]])
    assert promises.acknowledged
    await trio.to_thread.run_sync(server.drop_bucket, bucket)
    return (
        runner.tally
        + clients.answers
        + Counter({"(failed after storing)": proxy.failed_after_storing})
    )


async def _wait_until_stored(daemon: Daemon) -> None:
    with trio.fail_after(120):
        # Metrics can only be polled.
        while (await daemon.metrics())["payloadd_journal_jobs"]:  # noqa: ASYNC110
            await trio.sleep(0.1)
