"""The pipeline with several streams: each job once, in order, within its borders and its memory."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.pipeline.keeping_journal import KeepingJournal
from tests.pipeline.rig import FaultyStore, Pipeline, internal_error, slow_down

if TYPE_CHECKING:
    from payloadd.errors import StoreError
    from payloadd.model.formats.api import EncodedObject
    from payloadd.model.job import Members

_MINUTE = 60_000


class Commit(NamedTuple):
    """A request: its stream, its jobs, and what happens before it."""

    stream: int
    sizes: list[int]
    minutes: int
    """Minutes by which the clock goes on, or back."""
    pause: float
    """Seconds."""


commits = st.lists(
    st.builds(
        Commit,
        st.integers(0, 3),
        st.lists(st.integers(2, 60), min_size=1, max_size=12),
        st.sampled_from([0, 0, 0, 0, 1, -1, 3]),
        st.sampled_from([0.0, 0.0, 0.001, 0.1, 3.0]),
    ),
    max_size=40,
)
environs = st.fixed_dictionaries(
    {
        "MAX_QUEUE": st.sampled_from(["12", "40", "2000"]),
        "MAX_QUEUE_BYTES": st.sampled_from(["60B", "300B", "2000B"]),
        "BATCH_MAX_PAYLOADS": st.sampled_from(["1", "7", "100"]),
        "BATCH_MAX_BYTES": st.sampled_from(["100B", "900B"]),
        "BATCH_LINGER": st.sampled_from(["10ms", "2s"]),
    }
)


class WatchingStore(FaultyStore):
    """A store that knows the largest content of the memory, and fails sometimes."""

    def __init__(self, errors: list[StoreError | None], seconds: float) -> None:
        super().__init__(seconds=seconds)
        self.pipeline: Pipeline | None = None
        self.most = 0
        self.largest = 0
        left = iter(errors)
        self.fault = lambda _: next(left, None)

    def look(self) -> None:
        """Note the content of the memory."""
        assert self.pipeline is not None
        channel = self.pipeline.channel
        self.most = max(self.most, channel.bytes + channel.bytes_held)
        assert 0 <= channel.forming_bytes <= channel.bytes_held

    async def put(self, key: str, body: EncodedObject, members: Members, *, repeat: bool) -> None:
        """Keep the object, or fail."""
        self.largest = max(self.largest, body.size)
        self.look()
        await super().put(key, body, members, repeat=repeat)


def key_id(minutes: int, number: int) -> uuid.UUID:
    """Return the id of a job that was accepted in this minute."""
    milliseconds = 1_704_067_200_000 + minutes * _MINUTE + number % _MINUTE
    return uuid.UUID(int=(milliseconds << 80) | (0x7 << 76) | (0b10 << 62) | number)


@settings(deadline=None)
@given(
    commits=commits,
    environ=environs,
    errors=st.lists(st.sampled_from([None, internal_error(), slow_down()]), max_size=8),
    seconds=st.sampled_from([0.0, 0.01, 1.0]),
)
def test_every_job_is_stored_once_in_order_and_within_the_bounds(
    commits: list[Commit], environ: dict[str, str], errors: list[Any], seconds: float
) -> None:
    """Payloads would be lost, stored twice, out of order or under a wrong day; or memory grow."""
    store = WatchingStore(errors, seconds)
    environ = {**environ, "MAX_LENGTH": "60B", "KEY_TEMPLATE": "{hour}-{minute}/{id}"}
    pipeline = Pipeline(store, journal=KeepingJournal, streams=4, **environ)
    store.pipeline = pipeline
    journal = pipeline.journal
    assert isinstance(journal, KeepingJournal)
    sent: dict[bytes, tuple[int, int]] = {}

    async def main() -> None:
        with trio.fail_after(2000):
            async with pipeline.open():
                minutes = 0
                for commit in commits:
                    await trio.sleep(commit.pause)
                    minutes += commit.minutes
                    lines, ids = [], []
                    for size in commit.sizes:
                        text = b"%d\n" % (len(sent) + 1)
                        text = b" " * (size - len(text)) + text
                        sent[text] = commit.stream, minutes
                        lines.append(text)
                        ids.append(key_id(minutes, len(sent)))
                    journal.commit(commit.stream, *lines, ids=ids)
                    store.look()
                while errors and pipeline.accounting.open:  # noqa: ASYNC110 - no event reports it
                    await trio.sleep(0.5)  # a drain would leave batches that failed to the journal
        store.look()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    check(store, pipeline, sent)


def check(store: WatchingStore, pipeline: Pipeline, sent: dict[bytes, tuple[int, int]]) -> None:
    """Check what is stored, and the counts."""
    assert (pipeline.accounting.open, pipeline.accounting.stored) == (0, len(sent))
    stored = [text + b"\n" for body in store.objects.values() for text in body.split(b"\n")[:-1]]
    assert sorted(stored) == sorted(sent)
    for key, body in store.objects.items():
        lines = [text + b"\n" for text in body.split(b"\n")[:-1]]
        streams, minutes = zip(*(sent[text] for text in lines), strict=True)
        (stream,), (minute,) = set(streams), set(minutes)
        assert key.startswith(f"s{stream}/" if stream else "")
        hours, rest = divmod(minute % 1440, 60)
        assert f"{hours:02}-{rest:02}/" in key
        numbers = [int(text) for text in lines]
        assert numbers == sorted(numbers)
        between = [n for n in map(int, sent) if numbers[0] <= n <= numbers[-1]]
        assert [n for n in between if sent_stream(sent, n) == stream] == numbers
    channel = pipeline.channel
    assert (channel.bytes, channel.bytes_held, channel.forming_bytes) == (0, 0, 0)
    assert (channel.jobs, channel.forming_jobs, channel.jobs_put_back) == (0, 0, 0)
    quarter = channel.max_bytes // 4
    assert store.most <= max(channel.max_bytes, store.largest + quarter) + 2 * store.largest
    assert pipeline.accounting.jobs() == []
    counts = pipeline.accounting.streams()
    assert sum(one.stored for one in counts.values()) == len(sent)
    for stream, one in counts.items():
        assert one.accepted == one.stored == [s for s, _ in sent.values()].count(stream)


def sent_stream(sent: dict[bytes, tuple[int, int]], number: int) -> int:
    """Return the stream of the payload with this number."""
    return next(stream for text, (stream, _) in sent.items() if int(text) == number)
