"""Random cases: some seconds of them, or one that is made again from its seed."""

from __future__ import annotations

import random
import sys
import time
from typing import TYPE_CHECKING, Final

from tests.support.clients import seeded

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS: Final = {"short": 3.0, "long": 600.0}
_SEEDS: Final = 2**32


class Fuzz:
    """The cases of one test. ``option`` is short, long, or the seed of a single case."""

    def __init__(self, option: str) -> None:
        self._only = None if option in SECONDS else int(option)
        self._seconds = SECONDS.get(option, 0.0)
        self.seed = self._only
        """The seed of the present case."""
        self.count = 0

    def cases(self) -> Iterator[random.Random]:
        """Yield the source of the random choices of each case, until the time is over."""
        if self._only is not None:
            yield seeded(self._only)
            return
        end = time.monotonic() + self._seconds
        first = random.SystemRandom().randrange(_SEEDS)
        while time.monotonic() < end:
            self.seed = first + self.count
            self.count += 1
            yield seeded(self.seed)

    def tell(self) -> None:
        """Print the last case, which is the one that failed if one did."""
        sys.stdout.write(f"{self.count} cases; --fuzz={self.seed} makes the last one again\n")


def mutate(data: bytes, chance: random.Random, pieces: tuple[bytes, ...]) -> bytes:
    """Return ``data`` with a few bytes changed, lost, doubled or added; ``pieces`` are likely."""
    changed = bytearray(data)
    for _ in range(chance.choice((0, 1, 1, 2, 5))):
        place = chance.randrange(len(changed) + 1)
        end = place + chance.randrange(1, 9)
        match chance.randrange(6):
            case 0:
                changed[place : place + 1] = chance.randbytes(1)
            case 1:
                del changed[place:end]
            case 2:
                changed[place:place] = changed[place:end]
            case 3:
                changed[place:place] = chance.randbytes(chance.randrange(1, 4))
            case _:
                changed[place : place + chance.randrange(2)] = chance.choice(pieces)
    return bytes(changed)


def pieces_of(data: bytes, chance: random.Random) -> Iterator[bytes]:
    """Yield ``data`` cut at random places."""
    start = 0
    while start < len(data):
        end = start + chance.choice((1, 2, 7, 100, 5000, len(data)))
        yield data[start:end]
        start = end
