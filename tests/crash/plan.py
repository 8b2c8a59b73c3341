"""What happens to the daemon and to S3, in which order.

A plan is a list of lives. In each, something may happen to S3 first, and then the daemon
ends in one of the ways of ``death.py``. The next one starts in the same STATE_DIR.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    import random

Weather = Literal["fair", "lie", "freeze", "stop"]
"""S3 works; answers 500 after it has stored; hangs; is not there."""

Death = Literal[
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
class Life:
    """One life of the daemon: how S3 is during it, and how it ends."""

    weather: Weather
    death: Death


# The last ones leave time: a worker that S3 has turned away waits for up to 15 s.
SHORT: Final = (
    Life("fair", "while starting"),
    Life("fair", "commit begun"),
    Life("lie", "sealed, not put"),
    Life("fair", "put again, not settled"),
    Life("freeze", "at a random moment"),
    Life("stop", "SIGTERM"),
    Life("fair", "committed, not answered"),
    Life("fair", "while draining"),
    Life("fair", "put, not settled"),
)
SHORTEST: Final = (
    Life("fair", "sealed, not put"),
    Life("lie", "put again, not settled"),
    Life("fair", "SIGTERM"),
    Life("fair", "put, not settled"),
)

_KILLS: Final[tuple[Death, ...]] = (
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
_WEATHERS: Final[tuple[Weather, ...]] = ("fair", "fair", "fair", "lie", "lie", "freeze")
# Without an answer of S3 these moments do not come.
_NEED_S3: Final = frozenset({"put, not settled", "put again, not settled"})


def long_plan(rng: random.Random) -> list[Life]:
    """Return 55 kills and 10 SIGTERMs in random order, with three restarts of S3 among them."""
    deaths: list[Death] = [_KILLS[index % len(_KILLS)] for index in range(55)]
    deaths += ["SIGTERM"] * 10
    rng.shuffle(deaths)
    lives = [Life(rng.choice(_WEATHERS[: 5 if one in _NEED_S3 else 6]), one) for one in deaths]
    for number in rng.sample([n for n, one in enumerate(deaths) if one not in _NEED_S3], 3):
        lives[number] = Life("stop", lives[number].death)
    return [*lives, Life("fair", "put, not settled")]
