"""Random cases for some seconds, each made from a seed of its own."""

from __future__ import annotations

import random
import sys
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from tests.support.clients import seeded

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS: Final = {"short": 3.0, "long": 600.0}
_SEEDS: Final = 2**32


class Fuzz:
    """The cases of one test: ``length`` is short or long, ``first`` the seed of the first case."""

    def __init__(self, length: str, first: int | None = None) -> None:
        self._seconds = SECONDS[length]
        self._first = random.SystemRandom().randrange(_SEEDS) if first is None else first
        self.count = 0

    def cases(self) -> Iterator[random.Random]:
        """Yield the source of the random choices of each case, until the time is over."""
        end = time.monotonic() + self._seconds
        while self.count == 0 or time.monotonic() < end:
            self.count += 1
            yield seeded(self._first + self.count - 1)

    def tell(self) -> None:
        """Print the seed of the last case, which is the one that failed if one did."""
        last = self._first + self.count - 1
        sys.stdout.write(f"{self.count} cases; --fuzz-seed={last} begins with the last one\n")


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
    """Yield ``data`` cut at random places, at most at twenty."""
    places = sorted(chance.choices(range(len(data) + 1), k=chance.choice((0, 0, 1, 2, 5, 20))))
    for start, end in pairwise((0, *places, len(data))):
        if start < end:
            yield data[start:end]
