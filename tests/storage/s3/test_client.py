"""The client of S3: incomplete responses, and the store errors for errors of httpx."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import httpx
import pytest
import trio

from payloadd.errors import OperatorStoreError, TransientStoreError
from payloadd.storage.api import open_store
from payloadd.storage.s3.client import _read_beginning, _store_error
from tests.support.faults import Answer, fault_server, in_turn
from tests.support.objects import MEMBERS, plain

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from payloadd.config.settings import Settings


async def test_an_incomplete_response_is_an_error() -> None:
    """The beginning of an error document would be used as if it were complete."""

    class Broken(httpx.AsyncByteStream):
        def __aiter__(self) -> AsyncIterator[bytes]:
            return self

        async def __anext__(self) -> bytes:
            raise httpx.ReadError("reset")

    with pytest.raises(httpx.ReadError):
        await _read_beginning(httpx.Response(403, stream=Broken()))


def test_an_untrusted_certificate_is_an_operator_error() -> None:
    """A wrong certificate would be reported as a network failure."""
    error = httpx.ConnectError("")
    error.__cause__ = trio.BrokenResourceError()
    error.__cause__.__cause__ = ssl.SSLCertVerificationError("self-signed certificate")

    assert isinstance(_store_error(error), OperatorStoreError)
    assert "self-signed" in str(_store_error(error))


def test_a_refusal_of_a_proxy_is_an_operator_error() -> None:
    """A proxy that requires a password would be reported as a network failure."""
    assert isinstance(_store_error(httpx.ProxyError("407")), OperatorStoreError)


async def test_a_server_that_is_down_is_a_transient_error(
    make_settings: Callable[..., Settings],
) -> None:
    """A store that is down would stop the pipeline."""
    async with fault_server(in_turn(Answer(200))) as server:
        pass
    async with open_store(make_settings(AWS_ENDPOINT_URL=server.url)) as store:
        with pytest.raises(TransientStoreError, match=r"ConnectError: .+"):
            await store.put("k", plain(b"{}\n"), MEMBERS, repeat=False)
