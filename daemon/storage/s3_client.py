"""HTTP to S3: one signed request, one bounded answer, one kind of error.

The one boundary where httpx's exceptions become ours.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import httpx
import trio

from daemon import __version__
from daemon.errors import OperatorStoreError, SettingsError, TransientStoreError
from daemon.storage.s3_answer import Answer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from daemon.errors import StoreError
    from daemon.storage.s3_place import Place
    from daemon.storage.sigv4 import Signer

_CONNECT_SECONDS: Final = 10.0
# Shorter than the 15 to 20 s after which S3 and common proxies close an idle connection.
_IDLE_SECONDS: Final = 10.0
_ANSWER_BYTES: Final = 65_536
_LONGEST_REASON: Final = 300
_SIGNED: Final = ("host", "content-type")


class SignatureAuth(httpx.Auth):
    """Signs a request with the keys of this attempt; made anew for every attempt."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    async def async_auth_flow(
        self, request: httpx.Request
    ) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """Add the signature of what is sent: the target extension is the path on the wire."""
        target = request.extensions["target"].decode("ascii")
        covered = {
            name: text
            for name, text in request.headers.items()
            if name in _SIGNED or name.startswith("x-amz-")
        }
        request.headers.update(self._signer.sign(request.method, target, covered))
        yield request


class Body(httpx.AsyncByteStream):
    """Bytes to be sent, in one piece.

    httpx's own are async generators; one that a broken or cancelled write leaves behind is
    finished by the garbage collector, which trio rightly complains about.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._left: list[bytes] = []

    def __aiter__(self) -> Body:
        self._left = [self._data]
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


@dataclass(frozen=True, slots=True)
class S3Request:
    """What is asked; ``headers`` in lower case, with ``x-amz-content-sha256``."""

    method: str
    key: str
    headers: dict[str, str]
    body: bytes


class S3Client:
    """An ``httpx.AsyncClient`` that never has more than ``connections`` requests under way.

    ``timeout``: the most seconds that one request may take in all.
    """

    def __init__(self, connections: int, timeout: float) -> None:
        self._timeout = timeout
        try:
            self._http = httpx.AsyncClient(
                # Nothing ever waits in the pool: httpcore leaks slots when a waiter is cancelled.
                limits=httpx.Limits(
                    max_connections=connections,
                    max_keepalive_connections=connections,
                    keepalive_expiry=_IDLE_SECONDS,
                ),
                timeout=httpx.Timeout(timeout, connect=min(_CONNECT_SECONDS, timeout)),
                follow_redirects=False,
                # A compressed answer could not be read within a bound.
                headers={"user-agent": f"payloadd/{__version__}", "accept-encoding": "identity"},
            )
        except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
            # httpx reads SSL_CERT_FILE, HTTPS_PROXY and their like.
            raise SettingsError([f"TLS or proxy variables of the environment: {error}"]) from error

    async def send(self, asked: S3Request, place: Place, signer: Signer) -> Answer:
        """Make one attempt and return the answer, whatever it is.

        Raises TransientStoreError, or OperatorStoreError where TLS or a proxy says no.
        """
        request = self._http.build_request(
            asked.method,
            place.origin,
            headers=asked.headers,
            content=asked.body,
            # httpx would take `.` and `..` out of a path, and S3 keys may have them.
            extensions={"target": place.target(asked.key).encode("ascii")},
        )
        request.stream = Body(asked.body)
        try:
            with trio.fail_after(self._timeout):
                response = await self._http.send(request, auth=SignatureAuth(signer), stream=True)
                return await _read(response)
        except httpx.RequestError as error:
            raise _store_error(error) from error
        except UnicodeError as error:
            # A host name that cannot be looked up: bucket and endpoint do not go together.
            raise OperatorStoreError("InvalidEndpoint", str(error)) from error
        except trio.TooSlowError as error:
            reason = f"no answer within {self._timeout:g} s"
            raise TransientStoreError("UploadTimeout", reason) from error

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()


async def _read(response: httpx.Response) -> Answer:
    """Return the answer with the beginning of its body; the connection is given back."""
    body = b""
    try:
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) >= _ANSWER_BYTES:
                # Leaving the loop would leave four nested generators to the garbage
                # collector; on a closed connection they end by themselves.
                await response.aclose()
    except httpx.ReadError:
        if len(body) < _ANSWER_BYTES:
            raise
    headers = {name.lower(): text for name, text in response.headers.items()}
    return Answer(response.status_code, headers, body[:_ANSWER_BYTES])


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
