"""A request that is answered when the store has all of its payloads: until it has, and then."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from payloadd.model.stored_objects import MOST_KEYS, StoredObjects

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.journal.api import Receipt, StoreOutcome


def forget_outcome(_receipt: Receipt, _outcome: StoreOutcome) -> None:
    """Do nothing: the client of the request is gone."""


class UnstoredRequest:
    """A request of one job that is not stored yet. Most are: it has only what these need."""

    __slots__ = ("due", "receipt", "waiter")

    def __init__(self, receipt: Receipt, due: float) -> None:
        self.receipt = receipt
        self.due = due
        """The time at which it is given up."""
        self.waiter: Callable[[Receipt, StoreOutcome], object] = forget_outcome
        """The callback for the outcome."""

    def answer(self, outcome: StoreOutcome) -> None:
        """Call back with the outcome."""
        self.waiter(self.receipt, outcome)


class KeptRequest(UnstoredRequest):
    """A request of several jobs, or with a key: others may wait for its outcome, too."""

    __slots__ = ("count", "joined", "key", "left", "marks", "positions")

    def __init__(
        self, receipt: Receipt, due: float, count: int, key: bytes | None, marks: bytes
    ) -> None:
        super().__init__(receipt, due)
        self.count = self.left = count
        """Its jobs, and those of them that are not stored."""
        self.key = key
        self.marks = marks
        """The fingerprint, if it has a key."""
        self.positions: dict[str, int] = {}
        """The position of its first job in each object, by the object's key."""
        self.joined: list[Callable[[Receipt, StoreOutcome], object]] = []
        """The callbacks of its repetitions."""

    def answer(self, outcome: StoreOutcome) -> None:
        """Call back with the outcome, its repetitions too."""
        for done in (self.waiter, *self.joined):
            done(self.receipt, outcome)

    def store(self, number: int, key: str) -> bool:
        """Note that the job with the id ``number`` is in the object ``key``; return if all are."""
        self.positions.setdefault(key, number - self.receipt.id.int)
        self.left -= 1
        return not self.left

    def objects(self) -> StoredObjects:
        """Return the objects of a request that is stored, in the order of its payloads."""
        keys = sorted(self.positions, key=self.positions.__getitem__)
        return StoredObjects(keys[:MOST_KEYS], max(0, len(keys) - MOST_KEYS))


class StoredRequest(NamedTuple):
    """A request that is stored, for the answer to its repetitions."""

    receipt: Receipt
    objects: StoredObjects
    marks: bytes = b""
    """The fingerprint, if it has a key."""
    expires: int = 0
    """The time at which its key is forgotten, in milliseconds since boot."""
