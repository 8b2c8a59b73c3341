"""Kills while a large request is written in steps: it is stored whole or not at all."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Final

import pytest
import trio

from payloadd.journal.sqlite.schema import FILE
from tests.crash.bucket import read_bucket
from tests.crash.journal_copy import read_journal
from tests.support.daemon import END_WITHIN, running_daemon

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemon import Daemon

pytestmark = [pytest.mark.large, pytest.mark.no_cover]

_PAYLOADS: Final = 4000
_LIVES: Final = 4


class _Client:
    """A client that records the accepted payloads."""

    def __init__(self, daemon: Daemon, promised: list[bytes]) -> None:
        self._daemon = daemon
        self._promised = promised

    async def post(self, payloads: list[bytes]) -> None:
        """Post a collection; the daemon may be killed during the request."""
        body = b"\n".join(payloads)
        host, port = self._daemon.url.removeprefix("http://").split(":")
        try:
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                await stream.send_all(
                    b"POST /v1/payloads HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n"
                    b"content-type: application/x-ndjson\r\n\r\n%s" % (len(body), body)
                )
                answer = await stream.receive_some()
        except (OSError, trio.BrokenResourceError):
            return
        if answer.startswith(b"HTTP/1.1 202"):
            self._promised += payloads

    async def post_for_ever(self, name: int) -> None:
        """Post payloads one by one until the daemon is killed."""
        for number in range(1_000_000):
            await self.post([b'{"small":"%d-%d"}' % (name, number)])


async def test_a_kill_in_a_large_request_stores_all_of_it_or_nothing(tmp_path: Path) -> None:
    """If a client retries, half of its request would be stored twice."""
    state, bucket = tmp_path / "state", tmp_path / "bucket"
    env = {"STATE_DIR": str(state), "STORE_URL": f"file://{bucket}", "BATCH_MAX_PAYLOADS": "1"}
    promised: list[bytes] = []
    requests: list[list[bytes]] = []
    for life in range(_LIVES):
        async with running_daemon(tmp_path, env) as daemon, trio.open_nursery() as nursery:
            client = _Client(daemon, promised)
            requests.append([b'{"large":"%d-%d"}' % (life, n) for n in range(_PAYLOADS)])
            if life < _LIVES - 1:
                nursery.start_soon(client.post_for_ever, life)
                nursery.start_soon(client.post, requests[-1])
                await _until_hidden(state / FILE)
                daemon.signal(signal.SIGKILL)
                await daemon.wait()
                nursery.cancel_scope.cancel()
            else:
                await client.post(requests[-1])
                daemon.signal(signal.SIGTERM)
                drained = await daemon.drained()
                assert (drained["journaled"], drained["lost"]) == (0, 0)
    stored = read_bucket({path.name: path.read_bytes() for path in _objects(bucket)})
    assert set(stored.values()) == {1}
    assert set(promised) <= set(stored)
    assert set(requests[-1]) <= set(stored)
    for request in requests[:-1]:
        there = set(request) & set(stored)
        assert there in (set(), set(request)), len(there)
    assert read_journal(state).empty


async def _until_hidden(path: Path) -> None:
    """Wait until some rows of a large request are written, but not accepted."""
    with closing(sqlite3.connect(path)) as other, trio.fail_after(END_WITHIN):
        while not other.execute("SELECT 1 FROM stored WHERE last - first > 1000").fetchall():  # noqa: ASYNC110 - a file
            await trio.sleep(0.001)


def _objects(bucket: Path) -> list[Path]:
    return [path for path in bucket.rglob("*.ndjson") if path.is_file()]
