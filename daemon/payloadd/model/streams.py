"""Streams: their numbers, and how the ``seq`` of a job contains the number of its stream.

A stream has a name, which users see, and a number, which the journal gives it. Each stream numbers
its jobs by itself: ``seq`` is the stream's number in the high bits and a count in the low bits. So
the jobs of a stream have neighbouring ``seq``, and all ``seq`` of a stream are one range. The
default stream has the number 0: its ``seq`` is the count alone.
"""

from __future__ import annotations

from typing import Final

from payloadd.config.stream_names import DEFAULT_STREAM

DEFAULT: Final = 0
"""The number of the default stream."""
DEFAULT_NAME: Final = DEFAULT_STREAM
STREAM_BITS: Final = 48
"""The bits of a ``seq`` below the number of its stream."""
MOST_NUMBERS: Final = 2**13
"""Streams have numbers below this one, so every ``seq`` is below 2^61.

In a journal that machines share, the streams of a lane that was another process's have numbers
above, whose remainder is the number of the stream.
"""

_COUNT: Final = (1 << STREAM_BITS) - 1


def stream_of(seq: int) -> int:
    """Return the number of the stream of a job with this ``seq``."""
    return seq >> STREAM_BITS


def first_seq(stream: int) -> int:
    """Return the number below the first ``seq`` of a stream; no job has it."""
    return stream << STREAM_BITS


def last_seq(stream: int) -> int:
    """Return the highest ``seq`` that a job of a stream can have."""
    return stream << STREAM_BITS | _COUNT


def count_of(seq: int) -> int:
    """Return the ``seq`` of a job without the number of its stream."""
    return seq & _COUNT
