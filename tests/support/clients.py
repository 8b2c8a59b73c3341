"""Clients, and unusual but valid payloads for them to post."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import httpx
import trio

from tests.support.loopback import http_client

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


def seeded(seed: int) -> random.Random:
    """Return a random generator that makes the same choices in every run."""
    return random.Random(seed)  # noqa: S311 - protects no secret


def make_payload(number: int, rng: random.Random) -> bytes:
    """Return a payload that differs for each number, written as no serialiser would write it."""
    text = json.dumps("".join(rng.choices('aé🜁"\\\n ', k=rng.randrange(40))), ensure_ascii=False)
    blank = " " * rng.randrange(3)
    return f'{{"n":{blank}{number} ,"x":[1.0,1E3, -0],{blank}"text": {text}}}'.encode()


def make_collections(payloads: int, rng: random.Random) -> list[list[bytes]]:
    """Return ``payloads`` payloads in collections of 1 to 100."""
    made = [make_payload(number, rng) for number in range(payloads)]
    collections = []
    while made:
        size = rng.randint(1, 100)
        collections.append(made[:size])
        del made[:size]
    return collections


def body_of(payloads: Iterable[bytes]) -> bytes:
    """Return a JSON body that contains the exact bytes of the payloads."""
    return b'{"version": "1", "payloads": [' + b", ".join(payloads) + b"]}"


class WholeBody(httpx.AsyncByteStream):
    """A request body in one piece.

    httpx uses an async generator. If the daemon closes the connection while a body is sent, trio
    warns about an unfinished generator (ResourceWarning), which is an error in the tests.
    """

    def __init__(self, data: bytes) -> None:
        self._left = [data]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


@dataclass
class Posts:
    """The answers to all payloads that were posted."""

    url: str
    acknowledged: list[bytes] = field(default_factory=list)
    """Payloads of every 202 and 201."""
    answers: Counter[str] = field(default_factory=Counter)
    """The number of each answer: ``202``, ``503 QUEUE_FULL``; ``cut off`` without an answer, and
    ``not connected`` if the daemon cannot have received anything."""
    refusals: list[httpx.Response] = field(default_factory=list)
    """All answers other than these."""
    unanswered: list[list[bytes]] = field(default_factory=list)
    """Collections that were sent, and had no answer."""
    pause: float = 0.0
    """Seconds for which a client waits after a collection that was not accepted."""
    _changed: trio.Event = field(default_factory=trio.Event)

    async def run(self, collections: Iterable[Sequence[bytes]], clients: int = 1) -> None:
        """Post every collection once, with ``clients`` clients at the same time."""
        todo = iter(collections)
        async with (
            http_client(connections=clients) as http,
            trio.open_nursery() as nursery,
        ):
            for _ in range(clients):
                nursery.start_soon(self._client, http, todo)

    def summary(self) -> str:
        """Return the number of each answer, and the different texts of refusals."""
        return f"{dict(self.answers)} {sorted({answer.text for answer in self.refusals})}"

    async def wait_until_acknowledged(self, payloads: int, within: float = 60.0) -> None:
        """Wait until ``payloads`` payloads have been answered with 202."""
        with trio.fail_after(within):
            while len(self.acknowledged) < payloads:
                await self._changed.wait()

    async def _client(self, http: httpx.AsyncClient, todo: Iterator[Sequence[bytes]]) -> None:
        for collection in todo:
            accepted = await self._post(http, collection)
            self._changed.set()
            self._changed = trio.Event()
            if not accepted:
                await trio.sleep(self.pause)

    async def _post(self, http: httpx.AsyncClient, collection: Sequence[bytes]) -> bool:
        """Post a collection; return whether it was accepted."""
        body = body_of(collection)
        headers = {
            "Host": httpx.URL(self.url).netloc.decode(),
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
        }
        request = httpx.Request(
            "POST", f"{self.url}/v1/payloads", headers=headers, stream=WholeBody(body)
        )
        try:
            answer = await http.send(request)
        except httpx.ConnectError:
            self.answers["not connected"] += 1
            return False
        except httpx.TransportError:
            self.answers["cut off"] += 1
            self.unanswered.append([*collection])
            return False
        if answer.is_success:
            assert answer.json()["accepted"] == len(collection)
            self.acknowledged += collection
            self.answers[f"{answer.status_code}"] += 1
            return True
        self.answers[f"{answer.status_code} {answer.json()['code']}"] += 1
        self.refusals.append(answer)
        return False


async def post(url: str, payloads: Sequence[bytes]) -> None:
    """Post one collection; AssertionError if it is not accepted."""
    posts = Posts(url)
    await posts.run([payloads])
    assert posts.answers == {"202": 1}, [answer.text for answer in posts.refusals]
