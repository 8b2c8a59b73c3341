"""Hundreds of streams in little memory, with a journal on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

import payloadd.journal.open as journal_open
from payloadd.config import settings as config
from payloadd.observe.health import Health
from payloadd.observe.metrics import Metrics
from payloadd.pipeline.accounting import Accounting
from payloadd.pipeline.batching import Batcher
from payloadd.pipeline.dispatcher import dispatch
from payloadd.pipeline.intake import Intake
from payloadd.pipeline.listener import PipelineListener
from payloadd.pipeline.queue import JobChannel
from payloadd.pipeline.refill import QueueFeeder
from payloadd.pipeline.worker import Worker
from tests.pipeline.rig import FaultyStore
from tests.support.journal import TEST_TIMEOUT

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

_STREAMS = 200
_ROUNDS = 24
_PAYLOAD = b'"%s"' % (b"x" * 1021)


async def test_objects_are_full_although_all_streams_share_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1,000 streams in 64 MiB would make objects of 64 KiB, a hundred times as many as paid for."""
    names = ["default", *(f"s{number}" for number in range(1, _STREAMS))]
    monkeypatch.setattr(journal_open, "_stream_names", lambda _: names)
    settings = config.load(
        {
            "STATE_DIR": str(tmp_path),
            "MAX_LENGTH": "64KiB",
            "MAX_QUEUE_BYTES": "400KiB",
            "BATCH_MAX_BYTES": f"{_ROUNDS // 2}KiB",
            "BATCH_MAX_PAYLOADS": "10000",
            "BATCH_LINGER": "10m",
            "MAX_WORKERS": "4",
            "KEY_TEMPLATE": "{id}",
        }
    )
    health, metrics, store = Health(), Metrics(), FaultyStore()
    accounting, channel = Accounting(metrics), JobChannel(10_000, settings.max_queue_bytes)
    feeder = QueueFeeder(channel, accounting)
    listener = PipelineListener(channel, feeder, accounting, metrics)
    most = 0
    with trio.fail_after(3 * TEST_TIMEOUT):
        async with (
            journal_open.open_journal(settings, listener, health, metrics) as opened,
            trio.open_nursery() as nursery,
        ):
            assert len(opened.streams) == _STREAMS
            intake = Intake(opened.journal, health, settings)
            worker = Worker(store, opened.journal, accounting, health, metrics, channel, settings)
            batcher = Batcher(channel, opened.layouts, settings, worker.admission, feeder)
            await nursery.start(dispatch, batcher, worker)
            await nursery.start(feeder.refill, opened.journal)
            for _ in range(_ROUNDS):
                async with trio.open_nursery() as requests:
                    for number in opened.streams.values():
                        requests.start_soon(intake.accept, [_PAYLOAD], None, number)
                most = max(most, channel.bytes + channel.bytes_held)
            feeder.finish()
    assert (accounting.stored, accounting.journaled, accounting.lost) == (
        _STREAMS * _ROUNDS,
        0,
        0,
    )
    assert [len(body) for body in store.objects.values()] == [_ROUNDS * 512] * 2 * _STREAMS
    assert most <= settings.max_queue_bytes
    counts = accounting.streams()
    assert {(one.accepted, one.stored) for one in counts.values()} == {(_ROUNDS, _ROUNDS)}
