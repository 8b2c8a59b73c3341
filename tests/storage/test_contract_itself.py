"""The suite of all stores finds stores that break a rule."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio

from payloadd.errors import TransientStoreError
from payloadd.storage.api import open_store
from tests.storage import targets
from tests.storage import test_contract as suite
from tests.storage.targets import Folder, Target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from payloadd.config.settings import Settings
    from payloadd.model.formats.api import EncodedObject
    from payloadd.model.job import Members
    from payloadd.storage.api import Store

    Check = Callable[[Target], Awaitable[None]]


_TIMEOUT: Final = 2.0


class _Faulty:
    """A store that breaks a rule."""

    def __init__(self, real: Store, root: Path, nursery: trio.Nursery) -> None:
        self._real = real
        self._root = root
        self._nursery = nursery

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - of any method
        return getattr(self._real, name)


class _ReturnsEarly(_Faulty):
    async def put(self, key: str, body: EncodedObject, members: Members, *, repeat: bool) -> None:
        self._nursery.start_soon(partial(self._real.put, key, body, members, repeat=repeat))
        await trio.lowlevel.checkpoint()


class _DoesNotSync(_Faulty):
    async def put(self, key: str, body: EncodedObject, _members: Members, *, repeat: bool) -> None:
        del repeat
        path = self._root / key
        part = path.with_name("part")
        await trio.to_thread.run_sync(part.write_bytes, b"".join(body.pieces))
        part.replace(path)


class _WritesInPlace(_Faulty):
    async def put(self, key: str, body: EncodedObject, _members: Members, *, repeat: bool) -> None:
        del repeat
        with (self._root / key).open("wb") as file:
            for piece in body.pieces:
                await trio.to_thread.run_sync(file.write, piece)


class _error_for_cancellation:  # noqa: N801 - a context manager
    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is trio.Cancelled:
            raise TransientStoreError("CANCELLED", "it took too long")


class _ReportsCancellation(_Faulty):
    async def put(self, key: str, body: EncodedObject, members: Members, *, repeat: bool) -> None:
        with _error_for_cancellation():
            await self._real.put(key, body, members, repeat=repeat)
            await trio.sleep(1)


class _IgnoresCancellation(_Faulty):
    async def put(self, key: str, body: EncodedObject, members: Members, *, repeat: bool) -> None:
        await self._real.put(key, body, members, repeat=repeat)
        with trio.CancelScope(shield=True):
            await trio.sleep(2 * _TIMEOUT)


class _LosesObjects(_Faulty):
    _busy = False

    async def put(self, key: str, body: EncodedObject, members: Members, *, repeat: bool) -> None:
        if self._busy:
            await trio.lowlevel.checkpoint()
            return
        self._busy = True
        try:
            await self._real.put(key, body, members, repeat=repeat)
        finally:
            self._busy = False


class _StoresAtTheEnd(_Faulty):
    _late: Final[dict[str, EncodedObject]] = {}

    async def put(self, key: str, body: EncodedObject, members: Members, *, repeat: bool) -> None:
        self._late[key] = body
        self._nursery.start_soon(self._store, key, members, repeat)
        await trio.lowlevel.checkpoint()

    async def _store(self, key: str, members: Members, repeat: bool) -> None:  # noqa: FBT001 - start_soon
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await self._real.put(key, self._late[key], members, repeat=repeat)


_CONFIRMED: Final = suite.test_a_put_returns_after_its_confirmation_and_can_be_cancelled
_AT_ONCE: Final = suite.test_an_object_is_replaced_at_once
_FAULTS: Final[list[tuple[type[_Faulty], Check]]] = [
    (_ReturnsEarly, _CONFIRMED),
    (_DoesNotSync, _CONFIRMED),
    (_ReportsCancellation, _CONFIRMED),
    (_IgnoresCancellation, _CONFIRMED),
    (_WritesInPlace, _AT_ONCE),
    (_LosesObjects, suite.test_puts_at_the_same_time_do_not_disturb_each_other),
    (_StoresAtTheEnd, suite.test_an_object_with_the_same_key_is_replaced),
]


@pytest.mark.large
@pytest.mark.parametrize(
    ("fault", "check"), _FAULTS, ids=[f"{one.__name__}-{two.__name__}" for one, two in _FAULTS]
)
async def test_a_faulty_store_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: type[_Faulty], check: Check
) -> None:
    """A new store could break the rule and pass the suite."""
    root = tmp_path / "objects"

    @asynccontextmanager
    async def open_faulty(settings: Settings) -> AsyncIterator[_Faulty]:
        async with open_store(settings) as real, trio.open_nursery() as nursery:
            yield fault(real, root, nursery)
            nursery.cancel_scope.cancel()

    monkeypatch.setattr(suite, "open_store", open_faulty)
    monkeypatch.setattr(targets, "TEST_TIMEOUT", _TIMEOUT)
    with pytest.raises((*_FOUND, ExceptionGroup)) as caught, trio.fail_after(10):
        await check(Folder(root))
    assert all(isinstance(one, _FOUND) for one in leaves(caught.value))


_FOUND: Final = (AssertionError, TransientStoreError, trio.TooSlowError)
"""The errors by which the suite reports a fault; others would be faults of the test."""


def leaves(error: Exception) -> list[Exception]:
    """Return the errors of a group and of the groups in it, or the error itself."""
    if isinstance(error, ExceptionGroup):
        return [leaf for one in error.exceptions for leaf in leaves(one)]
    return [error]
