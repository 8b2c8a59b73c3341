"""The trouble of the store ends with the batches that have it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog.testing
import trio

from payloadd.errors import InvalidObjectError
from tests.pipeline.test_pipeline import FaultyStore, Pipeline, forbidden
from tests.support.journal import until

if TYPE_CHECKING:
    import pytest
    from trio.testing import MockClock

    from payloadd.errors import StoreError
    from payloadd.model.formats.api import EncodedObject


class ForbiddenPrefix(FaultyStore):
    """A store without the right to write one payload, until it is told otherwise."""

    error: StoreError | None = None

    async def put(self, key: str, body: EncodedObject) -> None:
        """Take the object, or refuse the one payload."""
        if self.error is not None and b"".join(body.pieces) == b"0\n":
            await trio.lowlevel.checkpoint()
            raise self.error
        await super().put(key, body)


async def test_one_batch_without_rights_is_said_once_beside_many_that_are_stored(
    autojump_clock: MockClock,
) -> None:
    """The log would have two lines for each object, and `/readyz` a trouble now and then."""
    assert autojump_clock.autojump_threshold == 0
    store = ForbiddenPrefix()
    store.error = forbidden()
    pipeline = Pipeline(store)
    with structlog.testing.capture_logs() as lines:
        async with pipeline.open():
            await pipeline.intake.accept([b"0"])
            for number in range(1, 50):
                await pipeline.intake.accept([b"%d" % number])
                await trio.sleep(0.5)
                assert pipeline.health.troubles["store"].code == "AccessDenied"
            store.error = None
    assert [line["event"] for line in lines] == ["store_unavailable", "store_available"]
    assert pipeline.accounting.stored == 50
    assert not pipeline.health.troubles


async def test_a_batch_that_becomes_a_dead_letter_ends_its_trouble(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A trouble would stay that no operator can end."""
    monkeypatch.setattr("payloadd.pipeline.worker.FIRST_PAUSE", 0.01)
    store = ForbiddenPrefix()
    store.error = forbidden()
    pipeline = Pipeline(store)
    async with pipeline.open():
        await pipeline.intake.accept([b"0"])
        await until(lambda: pipeline.health.troubles)
        store.error = InvalidObjectError("KeyTooLongError", "too long")
    assert pipeline.accounting.dead == 1
    assert not pipeline.health.troubles
