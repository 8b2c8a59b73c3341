"""Random cases for a few seconds; each case is made from its own seed."""

from __future__ import annotations

import random
import sys
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from tests.support.clients import seeded

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS: Final = {"short": 0.5, "usual": 1.5, "long": 600.0}
"""By the option ``--fuzz``."""
_SEEDS: Final = 2**32


class Fuzz:
    """The cases of a test: ``length`` as in SECONDS, ``first`` is the seed of the first case."""

    def __init__(self, length: str, first: int | None = None) -> None:
        self._seconds = SECONDS[length]
        self._first = random.SystemRandom().randrange(_SEEDS) if first is None else first
        self.count = 0

    def cases(self) -> Iterator[random.Random]:
        """Yield a random generator for each case, until the time is over; at least one."""
        end = time.monotonic() + self._seconds
        while self.count == 0 or time.monotonic() < end:
            self.count += 1
            yield seeded(self._first + self.count - 1)

    def print_seed(self) -> None:
        """Print the seed of the last case, which is the failed one if a case failed."""
        last = self._first + self.count - 1
        sys.stdout.write(f"{self.count} cases; --fuzz-seed={last} begins with the last one\n")


def known_cases(count: int) -> Iterator[random.Random]:
    """Yield the random generators of ``count`` seeds, the same ones in every run.

    What a fuzzer has to reach is checked with them: whether random cases reach it is luck.
    """
    return map(seeded, range(count))


def mutate(data: bytes, chance: random.Random, pieces: tuple[bytes, ...]) -> bytes:
    """Return ``data`` with bytes changed, removed, repeated or added, often from ``pieces``."""
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
    """Yield the parts of ``data``, cut at up to twenty random places."""
    places = sorted(chance.choices(range(len(data) + 1), k=chance.choice((0, 0, 1, 2, 5, 20))))
    for start, end in pairwise((0, *places, len(data))):
        if start < end:
            yield data[start:end]
