"""The store of a torture comes back after it was stopped, or the torture ends."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests.crash.proxy import s3_proxy
from tests.crash.store_faults import open_store_faults
from tests.support.s3 import seaweedfs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.s3 import S3Server

pytestmark = [pytest.mark.large, pytest.mark.no_cover]

_TAKEN: Final = "address already in use"
_WITHIN: Final = 120.0


@pytest.fixture
def own_seaweed(tmp_path: Path) -> Iterator[S3Server]:
    """Run a SeaweedFS server for one test, which may break it."""
    with seaweedfs(tmp_path) as server:
        yield server


async def test_a_store_whose_port_was_taken_comes_back(own_seaweed: S3Server) -> None:
    """The kernel gives ports of stopped servers to clients: a torture would fail now and then."""
    process = own_seaweed.process
    assert process is not None
    async with s3_proxy(own_seaweed) as proxy, open_store_faults(own_seaweed, proxy) as faults:
        with trio.fail_after(_WITHIN):
            await faults.set_state("stopped")
            with socket.socket() as other:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                other.bind(("127.0.0.1", process.ports["s3"][0]))
                other.listen()
                await faults.set_state("works")
                while _TAKEN not in process.log.read_text(errors="replace"):  # noqa: ASYNC110
                    await trio.sleep(0.05)
            await faults.wait_until_working()
    assert own_seaweed.make_bucket("works") == "works"


async def test_a_store_that_does_not_come_back_ends_the_torture(own_seaweed: S3Server) -> None:
    """The test command would hang for ever."""
    process = own_seaweed.process
    assert process is not None
    with trio.fail_after(_WITHIN), pytest.RaisesGroup(AssertionError, flatten_subgroups=True):
        async with s3_proxy(own_seaweed) as proxy, open_store_faults(own_seaweed, proxy) as faults:
            await faults.set_state("stopped")
            (process.folder / "s3.json").write_text("no JSON")
            await faults.set_state("works")
            await trio.sleep_forever()
