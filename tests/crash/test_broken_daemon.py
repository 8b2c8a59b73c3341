"""The checks of the torture find daemons that are broken on purpose, and no others.

Each case is one crash at one moment, once with the daemon as it is and once with one of its rules
removed.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests.crash.journal_copy import read_journal
from tests.crash.promises import Promises
from tests.support.clients import post
from tests.support.daemon import START_WITHIN, Daemon, running_daemon, started
from tests.support.store import FakeS3, fake_s3

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.no_cover

Case = Callable[[Daemon, FakeS3], Awaitable[list[bytes]]]

_RUN: Final = "\nfrom payloadd.cli.main import main\nmain()\n"
_SLOW_DISK: Final = """
import time
from payloadd.journal.sqlite.database import Database
commit = Database.commit
def slow_commit(self, operations):
    time.sleep(0.5)
    commit(self, operations)
Database.commit = slow_commit
"""
_ANSWERS_BEFORE_THE_COMMIT: Final = """
import trio
from payloadd.journal.sqlite.journal import SqliteJournal
append_soundly = SqliteJournal.append
def append(self, receipt, parts, key, done, *_, **__):
    append_soundly(self, receipt, parts, key, lambda _answer: None)
    trio.lowlevel.current_trio_token().run_sync_soon(done, receipt)
SqliteJournal.append = append
"""
_SETTLES_BEFORE_THE_PUT: Final = """
from dataclasses import replace
from payloadd.pipeline.worker import Worker
upload = Worker._upload
async def upload_too_late(self, current, timer):
    await self._journal.seal(current.batch)
    self._journal.settle(current.batch)
    current.batch = replace(current.batch, sealed=False)
    return await upload(self, current, timer)
Worker._upload = upload_too_late
"""
_DOES_NOT_SEAL: Final = """
from payloadd.journal.sqlite.journal import SqliteJournal
async def seal(self, batch):
    pass
SqliteJournal.seal = seal
"""


async def _crash_after_the_answer(daemon: Daemon, _store: FakeS3) -> list[bytes]:
    await post(daemon.url, [b"1"])
    return [b"1"]


async def _crash_while_putting(daemon: Daemon, store: FakeS3) -> list[bytes]:
    store.begin("hang")
    await post(daemon.url, [b"1"])
    await store.wait_until_asked(1)
    # The next commit removes settled batches from the journal.
    await post(daemon.url, [b"2"])
    return [b"1", b"2"]


async def _crash_before_the_store_has_confirmed(daemon: Daemon, store: FakeS3) -> list[bytes]:
    store.begin("take and reset")
    for number, payload in enumerate((b"1", b"2"), 1):
        await post(daemon.url, [payload])
        while len(store.objects) < number:
            await store.wait_until_asked(store.requests + 1)
    return [b"1", b"2"]


@pytest.mark.parametrize(
    ("case", "prelude", "rule_out", "caught"),
    [
        pytest.param(
            _crash_after_the_answer,
            _SLOW_DISK,
            _ANSWERS_BEFORE_THE_COMMIT,
            ["lost: 1"],
            id="answers-before-the-commit",
        ),
        pytest.param(
            _crash_while_putting,
            "",
            _SETTLES_BEFORE_THE_PUT,
            ["lost: 1"],
            id="settles-too-early",
            marks=pytest.mark.large,
        ),
        pytest.param(
            _crash_before_the_store_has_confirmed,
            "",
            _DOES_NOT_SEAL,
            ["doubled: 2"],
            id="does-not-seal",
            marks=pytest.mark.large,
        ),
    ],
)
async def test_a_broken_daemon_is_caught(
    tmp_path: Path, case: Case, prelude: str, rule_out: str, caught: list[str]
) -> None:
    """The torture would pass although a change has broken a promise."""
    assert await _crash_and_recover(tmp_path / "sound", case, prelude) == []
    assert await _crash_and_recover(tmp_path / "broken", case, prelude + rule_out) == caught


def _write(folder: Path, script: str) -> Path:
    folder.mkdir()
    daemon_script = folder / "daemon_script.py"
    daemon_script.write_text(script + _RUN)
    return daemon_script


async def _crash_and_recover(folder: Path, case: Case, script: str) -> list[str]:
    """Run ``script`` until its crash, then the normal daemon; returns the broken promises."""
    daemon_script = _write(folder, script)
    promises = Promises()
    async with fake_s3() as store:
        # With the condition the store would refuse the object that a broken daemon repeats with
        # other members.
        env = {
            **store.environ,
            "BATCH_MAX_PAYLOADS": "10",
            "UPLOAD_TIMEOUT": "5s",
            "S3_IF_NONE_MATCH": "off",
        }
        first = {**env, "BATCH_LINGER": "0s"}
        async with started(folder, first, (sys.executable, str(daemon_script))) as daemon:
            await daemon.wait_for_event("listening", START_WITHIN)
            promises.acknowledge(await case(daemon, store))
            daemon.process.kill()
            await daemon.wait()
        await store.end()
        waiting = await trio.to_thread.run_sync(read_journal, folder / "payloadd-data")
        async with running_daemon(folder, {**env, "BATCH_LINGER": "200ms"}) as daemon:
            await daemon.wait_until_stored(waiting.payloads.total())
        return promises.violations(Counter(store.payloads()))
