"""A store that was down is found out to work again, while no request tries it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from payloadd.config import settings as config
from payloadd.errors import OperatorStoreError
from payloadd.pipeline.store_probe import StoreProbe
from tests.pipeline.rig import FaultyStore, Pipeline, forbidden, internal_error

if TYPE_CHECKING:
    from payloadd.errors import StoreError
    from payloadd.model.formats.api import EncodedObject
    from payloadd.model.job import Members

_TEMPLATE: Final = "a/dt={date}/{id}.ndjson"


class _Picky(FaultyStore):
    """A store with rights for the keys that begin with ``allowed``."""

    allowed = ""

    async def put(self, key: str, body: EncodedObject, members: Members, *, repeat: bool) -> None:
        if not key.startswith(self.allowed):
            self.attempts[key] += 1
            raise OperatorStoreError("AccessDenied", "Access Denied")
        await super().put(key, body, members, repeat=repeat)


def _probe(store: FaultyStore, **environ: str) -> tuple[Pipeline, StoreProbe]:
    pipeline = Pipeline(store)
    settings = config.load({"KEY_TEMPLATE": _TEMPLATE, **environ})
    probe = StoreProbe(store, pipeline.worker.admission, settings)
    pipeline.worker.admission.probe = probe.run
    return pipeline, probe


async def test_a_store_in_trouble_is_tried_until_it_works(autojump_clock: object) -> None:
    """A daemon that a balancer sends nothing would never be ready again."""
    del autojump_clock
    store = FaultyStore()
    pipeline, _ = _probe(store)
    async with pipeline.open():
        await trio.sleep(60)
        assert not store.times, "nothing is in trouble"
        store.fault = lambda _: internal_error()
        pipeline.worker.admission.give_up("key", forbidden())
        await trio.sleep(21)
        assert 3 <= len(store.times) <= 5
        assert pipeline.health.trouble("store") is not None
        store.fault = lambda _: None
        await trio.sleep(6)
        assert pipeline.health.trouble("store") is None
        assert store.objects == {}, "it is deleted"


async def test_uploads_make_probes_needless(autojump_clock: object) -> None:
    """A store that is overloaded would get more requests."""
    del autojump_clock
    store = FaultyStore(fault=lambda _: forbidden())
    pipeline, _ = _probe(store)
    async with pipeline.open():
        await pipeline.intake.accept([b"1"])
        await trio.sleep(60)
        assert [key for key in store.attempts if "check" in key] == []
        store.fault = lambda _: None


async def test_the_object_is_written_where_the_rights_allow_it() -> None:
    """A store would look down because of a right that uploads do not need."""
    for allowed in ("", "a/dt=payloadd-check-", "a/dt=20"):
        store = _Picky()
        store.allowed = allowed
        pipeline, probe = _probe(store)
        pipeline.worker.admission.give_up("key", forbidden())
        await probe.probe()
        assert pipeline.health.trouble("store") is None


async def test_a_denied_object_is_the_trouble_of_the_store() -> None:
    """An operator would not know why the daemon is not ready."""
    store = _Picky()
    store.allowed = "b"
    pipeline, probe = _probe(store)
    await probe.probe()
    trouble = pipeline.health.trouble("store")
    assert trouble is not None
    assert trouble.code == "AccessDenied"
    assert len(store.attempts) == 3


async def test_an_attempt_that_hangs_ends(autojump_clock: object) -> None:
    """The first attempt at a store that hangs would be the last one."""
    del autojump_clock
    store = FaultyStore(seconds=10**6)
    pipeline, probe = _probe(store)
    with trio.fail_after(60):
        await probe.probe()
    trouble = pipeline.health.trouble("store")
    assert trouble is not None
    assert trouble.code == "NoAnswer"


async def test_an_object_that_cannot_be_deleted_is_no_trouble() -> None:
    """The right to delete is not needed."""

    class _Kept(FaultyStore):
        async def delete(self, key: str) -> None:
            del key
            raise _denied()

    def _denied() -> StoreError:
        return forbidden()

    pipeline, probe = _probe(_Kept())
    await probe.probe()
    assert pipeline.health.trouble("store") is None
