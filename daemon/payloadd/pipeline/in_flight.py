"""Count the requests that have ids and no outcome yet, for watermarks.

A job gets its time of acceptance with its id, before its request is committed. So the journal alone
does not tell whether all that was accepted up to a time is stored: a request with an earlier time
may still be committed.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import trio

from payloadd.model.job import IdSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Concatenate, ParamSpec

    from payloadd.errors import RefusedError
    from payloadd.journal.api import OutcomeCallback, Receipt
    from payloadd.model.job import AscendingIds, Part

    _Rest = ParamSpec("_Rest")
    """The parameters of ``Journal.append`` behind ``done``."""
    _AppendFunction = Callable[
        Concatenate[Receipt, Sequence[Part], bytes | None, OutcomeCallback, _Rest], None
    ]


class Uncounted:
    """The requests of a process without watermarks: none of them is counted."""

    def __init__(self) -> None:
        self.ids = IdSource()
        """The source of the ids of all requests."""

    def preparing(self) -> AbstractContextManager[None]:
        """Return a block that counts nothing."""
        return nullcontext()

    def counting(self, append: _AppendFunction[_Rest]) -> _AppendFunction[_Rest]:
        """Return ``append``."""
        return append


class InFlight:
    """The requests that have no outcome yet."""

    def __init__(self, ids: AscendingIds) -> None:
        self.ids = ids
        """The source of the ids of all requests."""
        self._round = 0
        self._open: dict[int, int] = {}
        """By round, the requests that began in it and have no outcome."""
        self._news = trio.Event()

    @property
    def empty(self) -> bool:
        """Whether every request has its outcome."""
        return not self._open

    @contextmanager
    def preparing(self) -> Iterator[None]:
        """Count a request during the block, which gives it ids and appends it."""
        began = self._begin()
        try:
            yield
        finally:
            self._end(began)

    def counting(self, append: _AppendFunction[_Rest]) -> _AppendFunction[_Rest]:
        """Return a function that does what ``append`` does, and counts the request meanwhile."""

        def append_counted(
            receipt: Receipt,
            parts: Sequence[Part],
            key: bytes | None,
            done: OutcomeCallback,
            /,
            *rest: _Rest.args,
            **options: _Rest.kwargs,
        ) -> None:
            began = self._begin()

            def finish(outcome: Receipt | RefusedError) -> None:
                self._end(began)
                done(outcome)

            try:
                append(receipt, parts, key, finish, *rest, **options)
            except BaseException:
                self._end(began)
                raise

        return append_counted

    async def wait_for_earlier(self) -> None:
        """Return once all requests that began before the call have their outcome."""
        self._round += 1
        current = self._round
        while any(began < current for began in self._open):
            self._news = trio.Event()
            await self._news.wait()

    def _begin(self) -> int:
        self._open[self._round] = self._open.get(self._round, 0) + 1
        return self._round

    def _end(self, began: int) -> None:
        self._open[began] -= 1
        if not self._open[began]:
            del self._open[began]
            self._news.set()
