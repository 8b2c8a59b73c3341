"""payloadd as a peer, with some settings."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tests.bench.peers.peer import PATH, Peer
from tests.support.daemon import Daemon, running_daemon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.bench.peers.peer import Running
    from tests.bench.sink import Sink

SETTINGS: Final = {
    "STORE_URL": "s3://bench",
    # With large payloads the default would be full within seconds.
    "JOURNAL_MAX_BYTES": "16GiB",
    # nginx answers 304 to a PUT with this condition, although RFC 9110, section 13.1.2, wants 412.
    "S3_IF_NONE_MATCH": "off",
}
BATCHES: Final = {"BATCH_MAX_PAYLOADS": "1000"}
_PROMISES: Final = {
    "disk": "on disk (fsync), exactly once",
    "store": "in the store",
    "memory": "in memory",
}
ALONE: Final = {"BATCH_MAX_PAYLOADS": "1"}


@dataclass(frozen=True, slots=True)
class _Payloadd:
    daemon: Daemon

    @property
    def pid(self) -> int:
        return self.daemon.pid

    @property
    def url(self) -> str:
        return f"{self.daemon.url}{PATH}"

    async def accepted(self) -> int | None:
        return int(await self.daemon.counted("payloads_accepted"))


def payloadd(name: str, *, batched: bool = True, **settings: str) -> Peer:
    """Return payloadd as a peer, with settings other than its defaults."""

    @asynccontextmanager
    async def start(folder: Path, store: Sink) -> AsyncIterator[Running]:
        batches = BATCHES if batched else ALONE
        env = {**SETTINGS, **batches, **store.environ, **settings}
        async with running_daemon(folder, env) as daemon:
            yield _Payloadd(daemon)

    return Peer(
        name, _PROMISES[settings.get("DURABILITY", "disk")], batched, start, missing=lambda: None
    )
