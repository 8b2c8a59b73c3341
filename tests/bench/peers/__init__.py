"""The daemons that are compared. A peer starts one daemon; :data:`PEERS` lists all peers.

All peers get a listening socket, the same sink, 64 workers or connections, a queue of 10,000, and
the settings that their documentation recommends for production.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.bench.peers.others import FASTAPI, GO, STRAIGHT
from tests.bench.peers.payloadd import payloadd

if TYPE_CHECKING:
    from tests.bench.peers.peer import Peer

ONE: Final = payloadd("payloadd, one object a payload", batched=False)
BATCHED: Final = payloadd("payloadd, batched")
IN_MEMORY: Final = payloadd(
    "payloadd, batched, in memory",
    DURABILITY="memory",
    # Without a journal the queue has to hold the payloads of some seconds.
    MAX_QUEUE="1000000",
    MAX_QUEUE_BYTES="4GiB",
)
STORED: Final = payloadd(
    "payloadd, batched, in the store",
    DURABILITY="store",
    BATCH_LINGER="250ms",
    MAX_CONNECTIONS="10000",
    # The queue has to hold all requests under way.
    MAX_QUEUE="1000000",
    MAX_QUEUE_BYTES="4GiB",
)

PEERS: Final[dict[str, Peer]] = {
    "one": ONE,
    "batched": BATCHED,
    "memory": IN_MEMORY,
    "store": STORED,
    "go": GO,
    "fastapi": FASTAPI,
    "straight": STRAIGHT,
}
