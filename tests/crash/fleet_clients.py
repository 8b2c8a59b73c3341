"""Clients of a fleet that repeat each request, with its key, at any daemon until it is accepted."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

import httpx
import trio

from tests.support.clients import WholeBody, body_of
from tests.support.loopback import http_client

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

_WITHIN: Final = 120.0
"""Seconds in which some requests are accepted, whatever the fleet goes through."""


class Crowd(NamedTuple):
    """How many clients there are, and how often they post."""

    clients: int
    pause: float
    """The longest pause of a client between two requests, in seconds."""


class FleetClients:
    """The clients; each payload of theirs has a number of its own."""

    def __init__(self, urls: Callable[[], Sequence[str]], rng: random.Random, crowd: Crowd) -> None:
        """``urls`` returns the addresses of the daemons that listen."""
        self._urls = urls
        self._rng = rng
        self._crowd = crowd
        self._stopping = False
        self.acknowledged: set[bytes] = set()
        self.answers: Counter[str] = Counter()
        self._number = 0

    async def run(self) -> None:
        """Post until ``stop``, and until every request that was begun is accepted."""
        async with trio.open_nursery() as nursery, http_client(64, 25.0) as http:
            async with trio.open_nursery() as clients:
                for _ in range(self._crowd.clients):
                    clients.start_soon(self._client, http)
            nursery.cancel_scope.cancel()

    def stop(self) -> None:
        """Begin no further requests."""
        self._stopping = True

    async def accepted(self, more: int) -> None:
        """Wait until so many further payloads are acknowledged."""
        enough = len(self.acknowledged) + more
        with trio.fail_after(_WITHIN):
            while len(self.acknowledged) < enough:  # noqa: ASYNC110 - a pause is short enough
                await trio.sleep(0.05)

    async def _client(self, http: httpx.AsyncClient) -> None:
        while not self._stopping:
            payloads = []
            for _ in range(self._rng.randint(1, 5)):
                self._number += 1
                payloads.append(b'{"n":%d}' % self._number)
            await self._repeat(http, payloads, f"key-{self._number}")
            await trio.sleep(self._crowd.pause * self._rng.random())

    async def _repeat(self, http: httpx.AsyncClient, payloads: list[bytes], key: str) -> None:
        body = body_of(payloads)
        headers = {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Idempotency-Key": key,
        }
        while True:
            urls = self._urls()
            if not urls:
                await trio.sleep(0.1)
                continue
            url = self._rng.choice(urls)
            patience = self._rng.choice([0.5, 5.0, 25.0])
            answer = None
            with trio.move_on_after(patience), suppress(httpx.HTTPError):
                headers["Host"] = httpx.URL(url).netloc.decode()
                stream = WholeBody(body)
                request = httpx.Request(
                    "POST", f"{url}/v1/payloads", headers=headers, stream=stream
                )
                answer = await http.send(request)
            if answer is not None and answer.is_success:
                self.answers["accepted"] += 1
                self.acknowledged.update(payloads)
                return
            code = "no answer" if answer is None else str(answer.json().get("code"))
            assert code not in {"KEY_REUSED", "MALFORMED"}, answer
            self.answers[code] += 1
            await trio.sleep(0.1 + 0.3 * self._rng.random())
