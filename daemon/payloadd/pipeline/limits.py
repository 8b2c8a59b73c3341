"""The limits on the starts of uploads that a throttling store imposes, one for each key prefix.

S3 throttles a partition of the keys: it splits a bucket by prefixes of keys where the load is, by
itself, and tells no client where ("Best practices design patterns: optimizing Amazon S3
performance"; 3,500 PUTs a second for each partitioned prefix). The prefix here is the folder of a
key, the longest part that objects share. If it is finer than a partition of S3, each folder finds
its share of the rate by itself, at the cost of a few refusals. If it were coarser, a throttled
shard would slow down all others.

Nothing is measured and nothing limited while the store refuses nothing.
"""

from __future__ import annotations

import math
from typing import Final

from payloadd.pipeline.rate import RateLimit

_MOST_LIMITS: Final = 1000
"""Limits at a time, further prefixes share one: a template may make a folder for each object."""
_OTHERS: Final = "\0"
"""The prefix that further prefixes share; no key begins with it."""
_LEAST_SAMPLE: Final = 0.25
"""Seconds: the stored uploads of a shorter time say little about a rate."""

_LEAST_GUESS: Final = 20.0
"""Uploads a second of all prefixes together, where hardly anything was stored lately."""


class UploadLimits:
    """The limits in force, by prefix. Times are of trio's clock."""

    def __init__(self) -> None:
        self.by_prefix: dict[str, RateLimit] = {}
        self._sampled = (0.0, 0)
        """A time, and the uploads that were stored until then."""

    def find(self, key: str, now: float) -> RateLimit | None:
        """Return the limit for uploads of ``key``; None without one."""
        prefix = self.prefix_of(key)
        limit = self.by_prefix.get(prefix)
        if limit is not None and limit.is_over(now):
            del self.by_prefix[prefix]
            return None
        return limit

    def prefix_of(self, key: str) -> str:
        """Return the name of the limit that ``key`` has, or would have."""
        prefix = key.rpartition("/")[0]
        if prefix not in self.by_prefix and len(self.by_prefix) >= _MOST_LIMITS:
            return _OTHERS
        return prefix

    def sample(self, now: float, stored: int) -> None:
        """Note that ``stored`` uploads were stored so far; call it about once a second."""
        self._sampled = (now, stored)

    def refuse(
        self, key: str, now: float, *, started: float, retry_after: float, stored: int
    ) -> bool:
        """Note that the store has throttled an upload; return whether it refuses everything.

        ``started`` is the start of the upload, ``retry_after`` the wait in seconds that the store
        asked for. ``stored`` are the uploads that were stored so far: the first limit of a prefix
        begins with the rate of all uploads.
        """
        limit = self.find(key, now)
        if limit is None:
            since, before = self._sampled
            rate = max((stored - before) / max(now - since, _LEAST_SAMPLE), _LEAST_GUESS)
            # Others had a part of these uploads: how many is not known, the limited ones at least.
            rate /= 1 + len(self.by_prefix)
            limit = RateLimit(now, rate, retry_after, worked=stored > before)
            self.by_prefix[self.prefix_of(key)] = limit
        else:
            limit.refuse(now, started, retry_after)
        return limit.refuses_all

    def store(self, key: str, now: float, started: float) -> None:
        """Note that an upload was stored, which had ``started``."""
        if (limit := self.find(key, now)) is not None:
            limit.store(now, started)

    def drop_over(self, now: float) -> None:
        """Forget limits that are over."""
        for prefix in [one for one, limit in self.by_prefix.items() if limit.is_over(now)]:
            del self.by_prefix[prefix]

    @property
    def any_refuses_all(self) -> bool:
        """Whether the store refuses all uploads of a prefix."""
        return any(limit.refuses_all for limit in self.by_prefix.values())

    def lowest_rate(self, now: float) -> float:
        """Return the uploads a second that may start below the most limited prefix; or infinity."""
        rates = [limit.rate(now) for limit in self.by_prefix.values() if not limit.is_over(now)]
        return min(rates, default=math.inf)
