"""The files of a running daemon's journal are deleted or moved away."""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests.support.clients import body_of
from tests.support.daemon import END_WITHIN, running_daemon
from tests.support.loopback import http_client
from tests.support.store import INTERNAL_ERROR, fake_s3

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

    from tests.support.daemon import Daemon
    from tests.support.store import FakeS3

pytestmark = pytest.mark.no_cover

_SETTINGS: Final = {"BATCH_MAX_PAYLOADS": "50", "BATCH_LINGER": "50ms", "MAX_QUEUE": "100"}
_SMALL: Final = [b'{"small":%d}' % number for number in range(200)]
_LARGE: Final = [b'{"large":%d,"x":"%b"}' % (number, b"x" * 20_000) for number in range(40)]
_HEADERS: Final = {"Content-Type": "application/json"}


async def _post(daemon: Daemon, *payloads: bytes) -> httpx.Response:
    async with http_client() as client:
        url, body = f"{daemon.url}/v1/payloads", body_of(payloads)
        return await client.post(url, content=body, headers=_HEADERS)


async def _accept(daemon: Daemon, payloads: list[bytes]) -> None:
    for start in range(0, len(payloads), 20):
        assert (await _post(daemon, *payloads[start : start + 20])).status_code == 202


async def _wait_for_readyz(daemon: Daemon, status: int) -> str:
    """Wait until /readyz answers with ``status``; return its body."""
    with trio.fail_after(END_WITHIN):
        while (answer := await daemon.ready()).status_code != status:  # noqa: ASYNC110 - polled
            await trio.sleep(0.05)
    return answer.text


def _stored(store: FakeS3) -> Counter[bytes]:
    """Return how often each payload is in the bucket."""
    return Counter(line for body in store.objects.values() for line in body.splitlines())


def _delete(state: Path, name: str) -> None:
    for path in [state] if name == "all" else state.glob(name):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    "name",
    [
        *("all", "segments"),
        pytest.param("journal.db*", marks=pytest.mark.large),
        pytest.param("journal.db-wal", marks=pytest.mark.large),
    ],
)
async def test_every_payload_that_was_accepted_is_stored_once(tmp_path: Path, name: str) -> None:
    """A clean-up job that deletes STATE_DIR would cost all payloads from then on."""
    state = tmp_path / "state"
    async with fake_s3(INTERNAL_ERROR) as store:
        env = {**_SETTINGS, **store.environ, "STATE_DIR": str(state)}
        async with running_daemon(tmp_path, env) as daemon:
            await _accept(daemon, [*_SMALL, *_LARGE])
            _delete(state, name)
            assert "deleted or replaced" in await _wait_for_readyz(daemon, 503)
            refused = await _post(daemon, b'"refused"')
            if refused.status_code != 202:  # not written again yet
                assert (refused.status_code, refused.json()["code"]) == (503, "DISK_ERROR")
            await _wait_for_readyz(daemon, 200)
            await _accept(daemon, [b'"after"'])
            assert daemon.event("journal_recreated")["payloads"] == 240
            daemon.signal(signal.SIGKILL)
            await daemon.wait()
        store.behaviour = "take"
        async with running_daemon(tmp_path, env) as daemon:
            # Large payloads of deleted segments are known from memory only.
            expected = [*_SMALL, b'"after"', *(_LARGE if name.startswith("journal") else [])]
            with trio.fail_after(END_WITHIN):
                while not set(expected) <= set(_stored(store)):  # noqa: ASYNC110 - no event
                    await trio.sleep(0.1)
            daemon.signal(signal.SIGTERM)
            await daemon.drained()
        found = _stored(store)
        assert set(found.values()) == {1}
        # Each large payload is stored or a dead letter: none is forgotten.
        assert set(found) <= {*_SMALL, *_LARGE, b'"after"', b'"refused"'}


async def test_what_is_in_memory_is_stored_while_files_are_missing(tmp_path: Path) -> None:
    """Payloads would wait for an operator, and be lost if the process ended before."""
    state = tmp_path / "state"
    async with fake_s3(INTERNAL_ERROR) as store:
        env = {**_SETTINGS, **store.environ, "STATE_DIR": str(state)}
        async with running_daemon(tmp_path, env) as daemon:
            await _accept(daemon, _SMALL)
            state.rename(tmp_path / "moved")
            state.touch()  # no STATE_DIR can be made here
            await _wait_for_readyz(daemon, 503)
            store.behaviour = "take"
            await daemon.wait_until_stored(len(_SMALL))
            assert (await _post(daemon, b'"refused"')).json()["code"] == "DISK_ERROR"
            state.unlink()
            (tmp_path / "moved").rename(state)
            await _wait_for_readyz(daemon, 200)
            await _accept(daemon, [b'"after"'])
            daemon.signal(signal.SIGTERM)
            await daemon.drained()
        async with running_daemon(tmp_path, env) as daemon:
            daemon.signal(signal.SIGTERM)
            await daemon.drained()
        assert _stored(store) == Counter([*_SMALL, b'"after"'])
