"""What is measured. A peer is a way to run one daemon; :data:`PEERS` names them all.

All peers get the same: a listening socket, the same sink, 64 workers or connections, a queue
of 10,000, and the settings that their own documentation asks for in production.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.bench.peers.others import FASTAPI, SEED, STRAIGHT
from tests.bench.peers.payloadd import payloadd

if TYPE_CHECKING:
    from tests.bench.peers.peer import Peer

ONE: Final = payloadd("payloadd, one object a payload", batched=False)
BATCHED: Final = payloadd("payloadd, batched")
IN_MEMORY: Final = payloadd(
    "payloadd, batched, in memory",
    DURABILITY="memory",
    # What has no journal must hold in the channel what the generator brings in a few seconds.
    MAX_QUEUE="1000000",
    MAX_QUEUE_BYTES="4GiB",
)

PEERS: Final[dict[str, Peer]] = {
    "one": ONE,
    "batched": BATCHED,
    "memory": IN_MEMORY,
    "seed": SEED,
    "fastapi": FASTAPI,
    "straight": STRAIGHT,
}
