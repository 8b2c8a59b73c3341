"""What the pipeline does for requests that are answered when they are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from payloadd.pipeline.given_up import GivenUpJobs
from payloadd.pipeline.store_probe import StoreProbe

if TYPE_CHECKING:
    from payloadd.config.settings import Settings
    from payloadd.journal.api import UnstoredRequests
    from payloadd.pipeline.batching import Batcher
    from payloadd.pipeline.worker import Worker
    from payloadd.storage.api import Store


def attach_unstored(
    requests: UnstoredRequests, batcher: Batcher, worker: Worker, store: Store, settings: Settings
) -> None:
    """Let a pipeline drop what its requests do not wait for, and probe a store that is down."""
    admission = worker.admission
    batcher.given_up = worker.given_up = GivenUpJobs(
        requests, batcher.channel, admission.put_back, worker.cancel_unwanted
    )
    admission.probe = StoreProbe(store, admission, settings).run
