"""The daemon's promises to its clients, and whether a bucket keeps them.

Every posted payload is in one of four states:

* acknowledged (202): it has to be in the bucket, exactly once;
* uncertain (no answer, and the client did not repeat the request): in the bucket at most once;
* refused (any other answer): not in the bucket;
* repeated with its Idempotency-Key until there is a 202: acknowledged, and in the bucket exactly
  once however often it was sent.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Collection, Iterable


@dataclass
class Promises:
    """The answers of the daemon, recorded by its clients."""

    acknowledged: set[bytes] = field(default_factory=set)
    uncertain: set[bytes] = field(default_factory=set)
    refused: set[bytes] = field(default_factory=set)
    accepted: dict[bytes, int] = field(default_factory=dict)
    """Acknowledged payloads and when they were accepted, in milliseconds of Unix time."""
    receipts: dict[str, str] = field(default_factory=dict)
    """Idempotency-Key to the id of its first 202."""
    contradictions: list[str] = field(default_factory=list)
    """Answers that are wrong with any contents of the bucket."""

    def acknowledge(self, payloads: Collection[bytes], receipt: str | None = None) -> None:
        """Record a 202, whose id ``receipt`` says when the payloads were accepted."""
        self.acknowledged.update(payloads)
        self.uncertain -= self.acknowledged
        if receipt is not None:
            self.accepted.update(dict.fromkeys(payloads, uuid.UUID(receipt).int >> 80))

    def leave_uncertain(self, payloads: Iterable[bytes]) -> None:
        """Record that there was no answer."""
        self.uncertain.update(set(payloads) - self.acknowledged)

    def refuse(self, payloads: Iterable[bytes]) -> None:
        """Record a refusal."""
        self.refused.update(payloads)

    def keep_receipt(self, key: str, receipt: str) -> None:
        """Record the id of a 202 with an Idempotency-Key; it has to equal the first id."""
        first = self.receipts.setdefault(key, receipt)
        if first != receipt:
            self.contradictions.append(f"key {key} was answered with {first} and with {receipt}")

    def violations(self, stored: Counter[bytes]) -> list[str]:
        """Return a line for every promise that a bucket with these payloads breaks."""
        known = self.acknowledged | self.uncertain | self.refused
        return [
            *self.contradictions,
            *_lines("lost", self.acknowledged - stored.keys()),
            *_lines("doubled", {one for one, times in stored.items() if times > 1}),
            *_lines("stored, but refused", self.refused & stored.keys()),
            *_lines("stored, but never posted", stored.keys() - known),
        ]


def _lines(problem: str, payloads: Iterable[bytes]) -> list[str]:
    return [f"{problem}: {payload.decode(errors='replace')}" for payload in sorted(payloads)]
