"""What the daemon has promised to its clients, and whether a bucket keeps it.

Every payload that is posted is one of four things:

* acknowledged (202): it has to be in the bucket, exactly once;
* uncertain (no answer came, and the client did not ask again): there once, or not at all;
* refused (any other answer): it must not be there, "whole or not at all";
* asked for again under its Idempotency-Key until there is a 202: acknowledged, and however
  often it was sent, there exactly once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterable


@dataclass
class Promises:
    """The answers of the daemon, from the clients' side."""

    acknowledged: set[bytes] = field(default_factory=set)
    uncertain: set[bytes] = field(default_factory=set)
    refused: set[bytes] = field(default_factory=set)
    receipts: dict[str, str] = field(default_factory=dict)
    """Idempotency-Key to the id it was first answered with."""
    contradictions: list[str] = field(default_factory=list)
    """Answers that are wrong whatever is in the bucket."""

    def acknowledge(self, payloads: Iterable[bytes]) -> None:
        """Note a 202."""
        self.acknowledged.update(payloads)
        self.uncertain -= self.acknowledged

    def leave_uncertain(self, payloads: Iterable[bytes]) -> None:
        """Note that no answer has come."""
        self.uncertain.update(set(payloads) - self.acknowledged)

    def refuse(self, payloads: Iterable[bytes]) -> None:
        """Note an answer that says: nothing of it was taken."""
        self.refused.update(payloads)

    def keep_receipt(self, key: str, receipt: str) -> None:
        """Note the id of a 202 with an Idempotency-Key: it has to be the first one's."""
        first = self.receipts.setdefault(key, receipt)
        if first != receipt:
            self.contradictions.append(f"key {key} was answered with {first} and with {receipt}")

    def violations(self, stored: Counter[bytes]) -> list[str]:
        """Return every promise that a bucket with these payloads breaks, a line each."""
        known = self.acknowledged | self.uncertain | self.refused
        return [
            *self.contradictions,
            *_lines("lost", self.acknowledged - stored.keys()),
            *_lines("doubled", {one for one, times in stored.items() if times > 1}),
            *_lines("stored, but refused", self.refused & stored.keys()),
            *_lines("stored, but never posted", stored.keys() - known),
        ]


def _lines(what: str, payloads: Iterable[bytes]) -> list[str]:
    return [f"{what}: {payload.decode(errors='replace')}" for payload in sorted(payloads)]
