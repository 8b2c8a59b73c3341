"""The client of S3: incomplete responses, and the store errors for errors of httpx."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import httpx
import pytest
import trio

from payloadd.errors import OperatorStoreError
from payloadd.storage.s3.client import _read_beginning, _store_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


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
