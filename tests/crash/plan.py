"""The plan of a torture: what S3 does and how the daemon ends, run by run.

A plan is a list of runs of the daemon. In each, S3 may start to fail, and then the daemon ends in
one of the ways of ``endings.py``. The next run starts with the same STATE_DIR.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    import random

StoreState = Literal["works", "stores and fails", "hangs", "stopped", "refuses batches"]
""""stores and fails" means that S3 answers 500 after it has stored the object.

"refuses batches" means that it answers 500 and stores watermarks alone.
"""

Ending = Literal[
    "while starting",
    "at a random moment",
    "commit begun",
    "committed, not answered",
    "sealed, not put",
    "put, not settled",
    "put again, not settled",
    "while draining",
    "SIGTERM",
]


@dataclass(frozen=True)
class DaemonRun:
    """One run of the daemon: the state of S3 during it, and its ending."""

    store_state: StoreState
    ending: Ending


# The last runs have a working S3: a worker whose upload failed waits up to 15 s.
SHORT: Final = (
    DaemonRun("works", "while starting"),
    DaemonRun("works", "commit begun"),
    DaemonRun("stores and fails", "sealed, not put"),
    DaemonRun("works", "put again, not settled"),
    DaemonRun("hangs", "at a random moment"),
    DaemonRun("stopped", "SIGTERM"),
    DaemonRun("works", "committed, not answered"),
    DaemonRun("works", "while draining"),
    DaemonRun("works", "put, not settled"),
)
SHORTEST: Final = (
    DaemonRun("stores and fails", "sealed, not put"),
    DaemonRun("works", "put again, not settled"),
    DaemonRun("works", "SIGTERM"),
    DaemonRun("works", "put, not settled"),
)
# For daemons with watermarks, which must not pass what is not stored.
_WAITING: Final = DaemonRun("refuses batches", "at a random moment")
SHORT_WITH_WATERMARKS: Final = (_WAITING, *SHORT)
SHORTEST_WITH_WATERMARKS: Final = (
    _WAITING,
    DaemonRun("works", "put again, not settled"),
    DaemonRun("works", "put, not settled"),
)

_KILLS: Final[tuple[Ending, ...]] = (
    "while starting",
    "at a random moment",
    "at a random moment",
    "commit begun",
    "committed, not answered",
    "committed, not answered",
    "sealed, not put",
    "put, not settled",
    "put, not settled",
    "put again, not settled",
    "while draining",
)
_STORE_STATES: Final[tuple[StoreState, ...]] = (
    "works",
    "works",
    "works",
    "stores and fails",
    "stores and fails",
    "hangs",
)
# These moments come only if S3 answers.
_NEED_S3: Final = frozenset({"put, not settled", "put again, not settled"})


def long_plan_with_watermarks(rng: random.Random) -> list[DaemonRun]:
    """Return the long plan, with ten further kills while S3 refuses batches."""
    plan = long_plan(rng)
    for _ in range(10):
        plan.insert(rng.randrange(len(plan)), _WAITING)
    return plan


def long_plan(rng: random.Random) -> list[DaemonRun]:
    """Return 55 kills and 10 SIGTERMs in random order, with three restarts of S3 among them."""
    endings: list[Ending] = [_KILLS[index % len(_KILLS)] for index in range(55)]
    endings += ["SIGTERM"] * 10
    rng.shuffle(endings)
    runs = [
        DaemonRun(rng.choice(_STORE_STATES[: 5 if one in _NEED_S3 else 6]), one) for one in endings
    ]
    for number in rng.sample([n for n, one in enumerate(endings) if one not in _NEED_S3], 3):
        runs[number] = DaemonRun("stopped", runs[number].ending)
    return [*runs, DaemonRun("works", "put, not settled")]
