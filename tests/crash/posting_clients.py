"""Clients that keep posting while the daemon is killed and restarted, and record the answers.

Some never repeat a request: without an answer they post new payloads. Some send an Idempotency-Key
and repeat until they get a 202, sometimes once more after it, sometimes twice at the same time.

A small journal knows few keys, and forgets the oldest of them where more come: then a repetition is
stored again, as the README says. So a key that is repeated for long keeps others from beginning.
"""

from __future__ import annotations

import itertools
import json
import uuid
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import h11
import trio

from tests.crash.wire import GONE, Wire, connect
from tests.support.clients import body_of, make_payload, seeded

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from tests.crash.promises import Promises

Answer = tuple[int, bytes]

_MOST_PAYLOADS: Final = 8
_NEWER_KEYS: Final = 80
"""Keys that may begin while an older one is repeated. The smallest journal of a torture, of 48 KiB,
keeps the 122 that were accepted last."""
_PACE: Final = 0.04
"""The longest pause of a client between two requests, in seconds."""
_TIMEOUT: Final = 30.0
_ACCEPTED: Final = 202
_UNAVAILABLE: Final = 503
_REFUSALS: Final = frozenset({"JOURNAL_FULL", "DRAINING"})


class PostingClients:
    """The clients of a torture."""

    def __init__(self, promises: Promises, rng: random.Random) -> None:
        self._promises = promises
        self._rng = rng
        self._numbers = itertools.count()
        self._next_key = 0
        self._repeated_keys: set[int] = set()
        """The number of each key whose last request is not answered yet."""
        self._port: int | None = None
        self._url_changed = trio.Event()
        self._stopping = False
        self._stopped = trio.Event()
        self._answered = trio.Event()
        self.under_way = 0
        """The number of requests without an answer yet."""
        self.answers: Counter[str] = Counter()
        """The number of each answer: ``202``, ``503 JOURNAL_FULL``; ``none`` without an answer."""

    def set_url(self, url: str | None) -> None:
        """Set the URL of the daemon; None while no daemon listens."""
        self._port = None if url is None else int(url.rpartition(":")[2])
        self._url_changed.set()
        self._url_changed = trio.Event()

    def stop(self) -> None:
        """Start no new request; ``run`` returns after the last answer."""
        self._stopping = True

    async def wait_for_acknowledgements(self, more: int, within: float = 2.0) -> None:
        """Wait for ``more`` further 202s, at most ``within`` seconds."""
        enough = self.answers["202"] + more
        with trio.move_on_after(within):
            while self.answers["202"] < enough:
                await self._answered.wait()

    async def run(self, clients: int) -> None:
        """Post with ``clients`` clients at the same time until ``stop`` is called."""
        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                nursery.start_soon(self._client, seeded(self._rng.getrandbits(32)))
        self._stopped.set()

    async def wait_until_stopped(self, within: float = 120.0) -> None:
        """Wait until every client has its last answer."""
        with trio.fail_after(within):
            await self._stopped.wait()

    async def _client(self, rng: random.Random) -> None:
        while not self._stopping:
            await self._port_of_daemon()
            payloads = self._new_payloads(rng)
            senders = rng.choice((0, 0, 0, 0, 1, 1, 1, 2))
            if senders and self._may_begin_key:
                await self._post_with_key(payloads, rng, senders)
            else:
                await self._post_once(payloads)
            await trio.sleep(rng.random() * _PACE)

    @property
    def _may_begin_key(self) -> bool:
        return self._next_key - min(self._repeated_keys, default=self._next_key) < _NEWER_KEYS

    async def _post_with_key(
        self, payloads: Sequence[bytes], rng: random.Random, senders: int
    ) -> None:
        """Post with an Idempotency-Key until each of ``senders`` has its 202."""
        key, number = uuid.uuid4().hex, self._next_key
        self._next_key += 1
        self._repeated_keys.add(number)
        async with trio.open_nursery() as nursery:
            for _ in range(senders):
                one = seeded(rng.getrandbits(32))
                nursery.start_soon(self._repeat_until_accepted, payloads, key, one)
        self._repeated_keys.remove(number)

    def _new_payloads(self, rng: random.Random) -> list[bytes]:
        count = rng.choice((1, rng.randint(2, _MOST_PAYLOADS)))
        return [make_payload(next(self._numbers), rng) for _ in range(count)]

    async def _post_once(self, payloads: Sequence[bytes]) -> None:
        answer = await self._post(payloads, [])
        if answer is None:
            self._promises.leave_uncertain(payloads)
        elif (receipt := self._accepted(answer, payloads)) is not None:
            self._promises.acknowledge(payloads, receipt)
        else:
            self._promises.refuse(payloads)

    async def _repeat_until_accepted(
        self, payloads: Sequence[bytes], key: str, rng: random.Random
    ) -> None:
        """Repeat a request until it is accepted, and sometimes once more."""
        self._promises.leave_uncertain(payloads)
        times = rng.choice((1, 1, 2))
        while times:
            await self._port_of_daemon()
            answer = await self._post(payloads, [("Idempotency-Key", key)])
            receipt = None if answer is None else self._accepted(answer, payloads)
            if receipt is not None:
                self._promises.acknowledge(payloads, receipt)
                self._promises.keep_receipt(key, receipt)
                times -= 1
            else:
                await trio.sleep(rng.uniform(0.05, 0.2))

    def _accepted(self, answer: Answer, payloads: Sequence[bytes]) -> str | None:
        """Return the id of a 202, None for an allowed refusal; record any other answer."""
        status, body = answer
        answered = json.loads(body)
        if status == _ACCEPTED and answered["accepted"] == len(payloads):
            return str(answered["id"])
        if status != _UNAVAILABLE or answered["code"] not in _REFUSALS:
            self._promises.contradictions.append(f"answered with {status} {body!r}")
        return None

    async def _port_of_daemon(self) -> int:
        while self._port is None:
            await self._url_changed.wait()
        return self._port

    async def _post(
        self, payloads: Sequence[bytes], headers: list[tuple[str, str]]
    ) -> Answer | None:
        """Return status and body of the answer; None without an answer."""
        answer = None
        self.under_way += 1
        with trio.move_on_after(_TIMEOUT):
            with suppress(*GONE):
                answer = await ask(await self._port_of_daemon(), body_of(payloads), headers)
        self.under_way -= 1
        self.answers[_name(answer)] += 1
        self._answered.set()
        self._answered = trio.Event()
        return answer


def _name(answer: Answer | None) -> str:
    if answer is None:
        return "none"
    status, body = answer
    return "202" if status == _ACCEPTED else f"{status} {json.loads(body).get('code')}"


async def ask(port: int, body: bytes, headers: list[tuple[str, str]]) -> Answer | None:
    """Return status and body of the answer to one POST. Raises one of ``GONE`` without one."""
    wire = await connect(port)
    try:
        return await _exchange(wire, port, body, headers)
    finally:
        wire.close()


async def _exchange(
    wire: Wire, port: int, body: bytes, headers: list[tuple[str, str]]
) -> Answer | None:
    await wire.request(
        "POST",
        "/v1/payloads",
        [
            ("Host", f"127.0.0.1:{port}"),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            *headers,
        ],
        body,
    )
    head = await wire.head()
    return (head.status_code, await wire.body()) if isinstance(head, h11.Response) else None
