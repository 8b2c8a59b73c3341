"""Idempotency-Keys against a running daemon, on both ways in."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Final

import pytest
import zstandard

from tests.support.daemon import running_daemon
from tests.support.loopback import http_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import httpx

pytestmark = pytest.mark.no_cover

_BODY: Final = b'{"payloads":[{"a":1},"two",3]}'
_JSON: Final = "application/json"
_BATCHES: Final = {"BATCH_MAX_PAYLOADS": "10000", "BATCH_LINGER": "100ms"}
_LARGE: Final = [{"number": number} for number in range(9_000)]
"""A body that is decoded in the decoder process."""


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def _post(
    url: str, body: bytes, key: str, content_type: str = _JSON, *, chunked: bool, coding: str = ""
) -> httpx.Response:
    headers = {"Content-Type": content_type, "Idempotency-Key": key}
    if coding:
        headers["Content-Encoding"] = coding
    async with http_client() as client:
        content = _pieces(body) if chunked else body
        return await client.post(f"{url}/v1/payloads", content=content, headers=headers)


@pytest.mark.parametrize("durability", ["disk", "memory"])
@pytest.mark.parametrize("chunked", [False, True], ids=["fast-path", "hypercorn"])
async def test_a_key_with_other_payloads_is_422_and_stores_nothing(
    tmp_path: Path, durability: str, *, chunked: bool
) -> None:
    """The client would get a 202 for payloads that are dropped."""
    async with running_daemon(tmp_path, {**_BATCHES, "DURABILITY": durability}) as daemon:
        first = await _post(daemon.url, _BODY, "k", chunked=chunked)
        assert first.status_code == 202
        same = [
            (_BODY, _JSON, ""),
            (gzip.compress(_BODY, mtime=1), _JSON, "gzip"),
            (gzip.compress(_BODY, 1, mtime=2), _JSON, "gzip"),
            (zstandard.compress(_BODY), _JSON, "zstd"),
            (b'{"a":1}\n"two"\n3\n', "application/x-ndjson", ""),
            (b'{"token":"t","payloads": [{"a":1}, "two", 3]}', _JSON, ""),
        ]
        for body, content_type, coding in same:
            again = await _post(daemon.url, body, "k", content_type, chunked=chunked, coding=coding)
            assert (again.status_code, again.json()) == (202, first.json())
        other = [
            (b'{"payloads":[{"a":1},"two",4]}', ""),
            (b'{"payloads":[{"a":1},"two"]}', ""),
            (b'{"payloads":[]}', ""),
            (gzip.compress(b'{"payloads":[{"a":2},"two",3]}'), "gzip"),
            (json.dumps({"payloads": _LARGE}).encode(), ""),
        ]
        for body, coding in other:
            refused = await _post(daemon.url, body, "k", chunked=chunked, coding=coding)
            assert refused.status_code == 422
            assert refused.headers["Content-Type"] == "application/problem+json"
            assert refused.json()["code"] == "KEY_REUSED"
            assert "Retry-After" not in refused.headers
        await daemon.wait_until_stored(3)
        daemon.signal(15)
        assert (await daemon.drained())["stored"] == 3


async def test_a_large_request_is_recognized_after_other_settings(tmp_path: Path) -> None:
    """After a change of BATCH_MAX_PAYLOADS a repeated request would be refused or stored twice."""
    body = json.dumps({"payloads": _LARGE}).encode()
    async with running_daemon(tmp_path, _BATCHES) as daemon:
        first = await _post(daemon.url, body, "k", chunked=False)
        assert first.status_code == 202
        daemon.signal(15)
        await daemon.drained()
    async with running_daemon(tmp_path, {"BATCH_MAX_PAYLOADS": "100"}) as daemon:
        again = await _post(daemon.url, gzip.compress(body), "k", chunked=False, coding="gzip")
        assert (again.status_code, again.json()) == (202, first.json())
