"""Post collections to a daemon, several at a time, until each is accepted.

Every request has an Idempotency-Key, so a request whose answer was lost is sent again without
being stored twice.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import httpx
import trio

from payloadd.cli.sending.cutting import NDJSON, BeyondEndError, CutError, collections
from payloadd.cli.sending.files import READ_ERRORS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from payloadd.cli.sending.cutting import FileCollection
    from payloadd.cli.sending.files import InputFile, OpenedFile

T = TypeVar("T")

_TEMPORARY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_TOO_LARGE: Final = 413
_FINAL_CODE: Final = "STORE_REFUSED"
"""The code of a 502 that comes again: the store has refused the payloads for good."""
_SHORTEST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 10.0
_LONGEST_DETAIL: Final = 500
_LINE: Final = re.compile(r"\bline ([0-9]{1,9})\b")

# Jitter keeps requests apart; it does not have to be unpredictable.
_random = random.Random().random  # noqa: S311


class _NotAcceptedError(Exception):
    """A collection was not accepted and would not be; the message says why."""


@dataclass(frozen=True, slots=True)
class Place:
    """A line of an NDJSON file, or an element of an array."""

    file: int
    """The index of the file on the command line."""
    line: int
    """The number of the line or element, from 1."""


class _Item(NamedTuple):
    place: Place
    collection: FileCollection


class FileSender:
    """Send files; ``accepted`` and ``position`` grow meanwhile."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        url: str,
        files: Sequence[InputFile],
        first_line: int,
        requests: int,
        give_up_after: float,
    ) -> None:
        """Prepare to send ``files``, the first from ``first_line`` on, to ``url``.

        At most ``requests`` requests are made at a time. ``give_up_after``: the seconds without an
        accepted request after which the sender gives up.
        """
        self._client = client
        self._url = url
        self._files = files
        self._requests = requests
        self._give_up_after = give_up_after
        self._next = Place(0, first_line)
        """The place that is read next."""
        # Bounded by the number of requests.
        self._pending: dict[Place, None] = {}
        """Where collections begin that were read and not accepted, in order."""
        self._ended = False
        self._closed = 0
        """Bytes of the files that were sent before the present one."""
        self._open: OpenedFile | None = None
        self._last_accepted = 0.0
        self.accepted = 0
        """Payloads that the daemon has accepted, now or in an earlier run."""
        self.failure: str | None = None
        """Why the sender has stopped."""
        self.waiting_for = ""
        """Why requests are repeated at present; "" where none is."""

    @property
    def position(self) -> int:
        """Bytes of the files, as they are on the disk, that were read."""
        return self._closed + (0 if self._open is None else self._open.position)

    @property
    def next_place(self) -> Place | None:
        """The first line that is not known to be accepted; None if all are."""
        return next(iter(self._pending), None if self._ended else self._next)

    async def run(self) -> None:
        """Send all files, or stop at the first collection that is not accepted.

        Then ``failure`` is set; the other requests that had begun are ended first.
        """
        self._last_accepted = trio.current_time()
        send, receive = trio.open_memory_channel[_Item](0)
        async with trio.open_nursery() as nursery:
            for _ in range(self._requests):
                nursery.start_soon(self._post_each, receive.clone())
            receive.close()
            async with send:
                await self._read_all(send)

    async def _read_all(self, send: trio.MemorySendChannel[_Item]) -> None:
        for index, file in enumerate(self._files):
            if index:
                self._next = Place(index, 1)
            try:
                with await _in_thread(file.open) as self._open:
                    await self._read(collections(self._open, self._next.line), index, send)
                    self._closed += self._open.position
            except BeyondEndError as error:
                self.failure = f"{file.name}: {error}"
                self._ended = True  # no line was left out
                return
            except (*READ_ERRORS, CutError) as error:
                self.failure = self.failure or f"{file.name}: {str(error) or type(error).__name__}"
                return
            except trio.BrokenResourceError:
                return  # all workers have stopped
            finally:
                self._open = None
        self._ended = True

    async def _read(
        self,
        found: Iterator[FileCollection],
        index: int,
        send: trio.MemorySendChannel[_Item],
    ) -> None:
        while self.failure is None:
            collection = await _in_thread(partial(next, found, None))
            if collection is None:
                return
            if not any(map(bytes.strip, collection.payloads)):
                self._next = Place(index, collection.end)  # blank lines only
                continue
            place = Place(index, collection.first)
            self._pending[place] = None
            self._next = Place(index, collection.end)
            await send.send(_Item(place, collection))

    async def _post_each(self, receive: trio.MemoryReceiveChannel[_Item]) -> None:
        """Post one collection after the other, until one of them is not accepted."""
        with receive:
            async for place, collection in receive:
                try:
                    await self._send(place, collection)
                except _NotAcceptedError as error:
                    self.failure = self.failure or str(error)
                if self.failure is not None:
                    return

    async def _send(self, place: Place, collection: FileCollection) -> None:
        """Post a collection; in halves, if the daemon says that it is too large.

        Raises _NotAcceptedError.
        """
        parts = [collection]
        while parts:
            part = parts.pop()
            answer = await self._post(part, self._files[place.file])
            if answer.status_code == _TOO_LARGE and len(part.payloads) > 1:
                parts += reversed(part.halves())
            elif answer.is_success:
                self.accepted += _accepted(answer)
                self._last_accepted = trio.current_time()
            else:
                raise _NotAcceptedError(self._describe(place, part, _reason(answer, part)))
        del self._pending[place]

    async def _post(self, part: FileCollection, file: InputFile) -> httpx.Response:
        """Return the answer to a collection, which is no temporary refusal.

        Raises _NotAcceptedError where nothing was accepted for too long, or where another
        collection was not accepted.
        """
        headers = {"Content-Type": part.media_type, "Idempotency-Key": part.key(file.identity)}
        pause = _SHORTEST_PAUSE
        while True:
            wait: float | None = None
            try:
                answer = await self._client.post(self._url, content=part.body, headers=headers)
            except httpx.TransportError as error:
                self.waiting_for = f"{type(error).__name__}: {error}".rstrip(": ")
            else:
                if not _is_temporary(answer):
                    self.waiting_for = ""
                    return answer
                wait = _retry_after(answer)
                self.waiting_for = _problem(answer)
            if self.failure is not None:
                raise _NotAcceptedError(self.waiting_for)
            if wait is None:
                wait = pause * (0.5 + _random())
                pause = min(2 * pause, _LONGEST_PAUSE)
            if trio.current_time() + wait > self._last_accepted + self._give_up_after:
                place = Place(self._files.index(file), part.first)
                reason = f"{self.waiting_for}; nothing was accepted for {self._give_up_after:g} s"
                raise _NotAcceptedError(self._describe(place, part, reason))
            await trio.sleep(wait)

    def _describe(self, place: Place, part: FileCollection, reason: str) -> str:
        name = self._files[place.file].name
        return f"{name}, {part.unit}s {part.first} to {part.end - 1}: {reason}"


async def _in_thread(call: Callable[[], T]) -> T:
    """Return the result of a call that may read from a pipe, which may take for ever."""
    return await trio.to_thread.run_sync(call, abandon_on_cancel=True)


def _is_temporary(answer: httpx.Response) -> bool:
    return answer.status_code in _TEMPORARY and _code(answer) != _FINAL_CODE


def _accepted(answer: httpx.Response) -> int:
    """Return the number of payloads in a receipt. Raises _NotAcceptedError if it is none."""
    try:
        return int(answer.json()["accepted"])
    except (ValueError, TypeError, KeyError):
        raise _NotAcceptedError(
            f"{answer.status_code} without a receipt: {answer.url} is no payloadd"
        ) from None


def _members(answer: httpx.Response) -> dict[str, object]:
    """Return the members of a problem document (RFC 9457); {} for any other body."""
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _code(answer: httpx.Response) -> object:
    return _members(answer).get("code")


def _problem(answer: httpx.Response) -> str:
    """Return the status, code and detail of a refusal."""
    members = _members(answer)
    code, detail = members.get("code", ""), members.get("detail", "")
    text = f"{answer.status_code} {code}".rstrip()
    return f"{text}: {str(detail)[:_LONGEST_DETAIL]}" if detail else text


def _reason(answer: httpx.Response, part: FileCollection) -> str:
    """Return the problem, with the line of the file where it names a line of the request."""
    text = _problem(answer)
    named = _LINE.search(text) if part.media_type == NDJSON else None
    if named is not None and part.first > 1:
        line = part.first + int(named[1]) - 1
        text += f" (line {named[1]} of this request is line {line} of the file)"
    return text


def _retry_after(answer: httpx.Response) -> float | None:
    """Return the seconds of ``Retry-After`` (RFC 9110, section 10.2.3), None if it is not valid."""
    text = answer.headers.get("Retry-After", "")
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        then = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (then - datetime.now(UTC)).total_seconds()) if then.tzinfo else None
