"""HTTP to S3: one signed request, one bounded answer, one kind of error.

The one boundary where httpx's exceptions become ours.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import httpx

from daemon import __version__
from daemon.errors import OperatorStoreError, SettingsError, TransientStoreError
from daemon.storage.s3_answer import Answer
from daemon.storage.transport import Body, open_transport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daemon.errors import StoreError
    from daemon.storage.s3_place import Place
    from daemon.storage.sigv4 import Signer

_CONNECT_SECONDS: Final = 10.0
# Shorter than the 15 to 20 s after which S3 and common proxies close an idle connection.
_IDLE_SECONDS: Final = 10.0
_ANSWER_BYTES: Final = 65_536
_LONGEST_REASON: Final = 300
# Not part of the signature: nothing on the way has to leave them alone. A compressed answer
# could not be read within a bound.
_UNSIGNED: Final = {"user-agent": f"payloadd/{__version__}", "accept-encoding": "identity"}


@dataclass(frozen=True, slots=True)
class S3Request:
    """What is asked; ``headers`` in lower case, with ``x-amz-content-sha256``."""

    method: str
    key: str
    headers: dict[str, str]
    body: bytes


class S3Client:
    """Never has more than ``connections`` requests under way, https ones only if ``secure``.

    ``timeout``: the most seconds that a request may wait for the other side at a time; whoever
    calls bounds an attempt as a whole.
    """

    def __init__(self, connections: int, timeout: float, *, secure: bool) -> None:
        times = httpx.Timeout(timeout, connect=min(_CONNECT_SECONDS, timeout))
        self._timeout = times.as_dict()
        try:
            self._transport = open_transport(connections, _IDLE_SECONDS, secure=secure)
        except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
            # httpx reads SSL_CERT_FILE, HTTPS_PROXY and their like.
            raise SettingsError([f"TLS or proxy variables of the environment: {error}"]) from error

    async def send(self, asked: S3Request, place: Place, signer: Signer) -> Answer:
        """Make one attempt and return the answer, whatever it is.

        Raises TransientStoreError, or OperatorStoreError where TLS or a proxy says no.
        """
        request = self._build(asked, place, signer)
        try:
            response = await self._transport.handle_async_request(request)
            return await _read(response)
        except httpx.RequestError as error:
            raise _store_error(error) from error
        except UnicodeError as error:
            # A host name that cannot be looked up: bucket and endpoint do not go together.
            raise OperatorStoreError("InvalidEndpoint", str(error)) from error

    def _build(self, asked: S3Request, place: Place, signer: Signer) -> httpx.Request:
        """Return the signed request.

        Every header is set here and the transport called directly: ``AsyncClient`` would merge
        its defaults, build URLs and run an auth flow, 180 us a request to the same end.
        """
        url = _url(place.origin)
        target = place.target(asked.key)
        headers = {"host": url.netloc.decode("ascii"), **asked.headers}
        headers |= signer.sign(asked.method, target, headers)
        headers |= _UNSIGNED
        headers["content-length"] = str(len(asked.body))
        # httpx would take `.` and `..` out of a path, and S3 keys may have them.
        extensions = {"target": target.encode("ascii"), "timeout": self._timeout}
        return httpx.Request(
            asked.method, url, headers=headers, stream=Body(asked.body), extensions=extensions
        )

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


@lru_cache(maxsize=8)
def _url(origin: str) -> httpx.URL:
    return httpx.URL(origin)


async def _read(response: httpx.Response) -> Answer:
    """Return the answer with the beginning of its body; the connection is given back."""
    assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - for mypy
    body = b""
    try:
        async for chunk in response.stream:
            body += chunk
            if len(body) >= _ANSWER_BYTES:
                # Leaving the loop would leave httpx's nested generators to the garbage
                # collector; on a closed connection they end by themselves.
                await response.aclose()
    except httpx.ReadError:
        if len(body) < _ANSWER_BYTES:
            raise
    return Answer(response.status_code, response.headers, body[:_ANSWER_BYTES])


def _store_error(error: httpx.RequestError) -> StoreError:
    causes = list(_causes(error))
    reason = next((str(cause) for cause in causes if str(cause)), "")[:_LONGEST_REASON]
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return OperatorStoreError("CertificateError", reason)
    if isinstance(error, httpx.ProxyError):
        return OperatorStoreError("ProxyError", reason)
    return TransientStoreError(type(error).__name__, reason)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what led to it: httpx's own often say nothing."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
