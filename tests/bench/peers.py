"""What is measured. A peer is a way to run one daemon; :data:`PEERS` names them all.

Another daemon joins by one function more: it starts the process in a folder of its own,
stores to the sink, and says when it has stored all it took.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from tests.support.daemon import Daemon, running_daemon

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.bench.sink import Sink


@dataclass(frozen=True, slots=True)
class Counts:
    """What a peer has done with payloads so far."""

    accepted: int
    stored: int
    given_up: int

    @property
    def settled(self) -> bool:
        """Whether nothing that was accepted is still on its way."""
        return self.accepted == self.stored + self.given_up


class Running(Protocol):
    """A peer that runs: its process id, where it takes POSTs, and how far it is."""

    @property
    def pid(self) -> int:
        """The root of its process tree."""
        ...

    @property
    def url(self) -> str:
        """Where to post; the path is the contract's."""
        ...

    async def counts(self) -> Counts:
        """Return how far it is; asking costs it as little as it can."""
        ...


@dataclass(frozen=True, slots=True)
class Peer:
    """A named way to run one."""

    name: str
    start: Callable[[Path, Sink], AbstractAsyncContextManager[Running]]


@dataclass(frozen=True, slots=True)
class _Payloadd:
    daemon: Daemon

    @property
    def pid(self) -> int:
        return self.daemon.pid

    @property
    def url(self) -> str:
        return self.daemon.url

    async def counts(self) -> Counts:
        now = await self.daemon.metrics()
        return Counts(
            int(now["payloadd_payloads_accepted_total"]),
            int(now["payloadd_payloads_stored_total"]),
            int(now["payloadd_payloads_dead_total"]),
        )


def _payloadd(name: str, settings: Mapping[str, str]) -> Peer:
    """Return payloadd with some settings other than its defaults."""

    @asynccontextmanager
    async def start(folder: Path, store: Sink) -> AsyncIterator[Running]:
        env = {"STORE_URL": "s3://bench", **store.environ, **settings}
        async with running_daemon(folder, env) as daemon:
            yield _Payloadd(daemon)

    return Peer(name, start)


PEERS: Final = {
    peer.name: peer
    for peer in [
        _payloadd("payloadd", {}),
        _payloadd("payloadd, batched", {"BATCH_MAX_PAYLOADS": "1000"}),
        _payloadd("payloadd, memory, batched", {"BATCH_MAX_PAYLOADS": "1000", "DURABILITY": "memory"}),
    ]
}
