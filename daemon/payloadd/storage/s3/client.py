"""HTTP to S3: one signed request, one bounded answer, one kind of error.

The one boundary where httpx's exceptions become ours.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

import httpx

from payloadd import __version__
from payloadd.errors import (
    InvalidObjectError,
    OperatorStoreError,
    SettingsError,
    TransientStoreError,
)
from payloadd.redaction import hide_userinfo_in_sentence
from payloadd.storage.http1.body import PieceBody
from payloadd.storage.http1.request import WrittenRequest
from payloadd.storage.http1.transport import TrioTransport, open_transport
from payloadd.storage.s3.response import Answer
from payloadd.storage.s3.sigv4 import Form

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from payloadd.errors import StoreError
    from payloadd.model.formats.ndjson import Encoded
    from payloadd.storage.s3.endpoint import BucketEndpoint
    from payloadd.storage.s3.sigv4 import Signer

_CONNECT_SECONDS: Final = 10.0
# Shorter than the 15 to 20 s after which S3 and common proxies close an idle connection.
_IDLE_SECONDS: Final = 10.0
_ANSWER_BYTES: Final = 65_536
_LONGEST_REASON: Final = 300
# Not part of the signature: nothing on the way has to leave them alone. A compressed answer
# could not be read within a bound.
_UNSIGNED: Final = {"user-agent": f"payloadd/{__version__}", "accept-encoding": "identity"}


@dataclass(frozen=True, eq=False)
class Shape:
    """What many requests have in common; names of headers are in lower case."""

    method: str
    fixed: Mapping[str, str]
    varying: Sequence[str]
    """Names of the headers that each has its own value of, ``x-amz-content-sha256`` among them."""


class S3Request(NamedTuple):
    """What is asked."""

    shape: Shape
    key: str
    values: Mapping[bytes, bytes]
    """The headers that vary."""
    body: Encoded


class S3Client:
    """Never has more than ``connections`` requests under way, https ones only if ``secure``.

    Only to connect has a bound of its own, ``timeout`` seconds at most: whoever calls bounds an
    attempt as a whole, and a second timer inside of that one would be 10 us a request.
    """

    def __init__(self, connections: int, timeout: float, *, secure: bool) -> None:
        times = httpx.Timeout(None, connect=min(_CONNECT_SECONDS, timeout))
        self._timeout = times.as_dict()
        try:
            self._transport = open_transport(connections, _IDLE_SECONDS, secure=secure)
        except (OSError, ImportError) as error:
            # httpx reads SSL_CERT_FILE, HTTPS_PROXY and their like.
            raise SettingsError([f"TLS or proxy variables of the environment: {error}"]) from error
        except (ValueError, httpx.InvalidURL) as error:
            # The error's text would repeat pieces of a URL, and of a password in it.
            problem = (
                "TLS or proxy variables of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY,"
                f" NO_PROXY): one cannot be used ({type(error).__name__}); allowed is"
                " http://[user:password@]host[:port]"
            )
            raise SettingsError([problem]) from error

    async def send(self, asked: S3Request, place: BucketEndpoint, signer: Signer) -> Answer:
        """Make one attempt and return the answer, whatever it is.

        Raises TransientStoreError; OperatorStoreError where TLS or a proxy says no;
        InvalidObjectError for a key that is no Unicode text.
        """
        try:
            target = place.target(asked.key).encode("ascii")
        except UnicodeEncodeError as error:
            raise InvalidObjectError("InvalidKey", f"not Unicode text: {asked.key!r}") from error
        request = self._build(asked, target, place.origin, signer)
        try:
            if isinstance(self._transport, TrioTransport):
                read = await self._transport.exchange(request)
                answer = Answer(read.status, body=read.body[:_ANSWER_BYTES])
                if not answer.stored:
                    answer.lines = read.headers
                    answer.secrets = signer.keys.secrets()
                return answer
            response = await self._transport.handle_async_request(request)
            body = await _beginning(response)
        except httpx.RequestError as error:
            raise _store_error(error) from error
        except UnicodeError as error:
            # A host name that cannot be looked up: bucket and endpoint do not go together.
            raise OperatorStoreError("InvalidEndpoint", str(error)) from error
        secrets = signer.keys.secrets()
        return Answer(response.status_code, response.headers.raw, body[:_ANSWER_BYTES], secrets)

    def _build(
        self, asked: S3Request, target: bytes, origin: str, signer: Signer
    ) -> WrittenRequest:
        """Return the signed request.

        Every header is set here and the transport called directly: ``AsyncClient`` would merge
        its defaults, build URLs and run an auth flow, 180 us a request to the same end.
        """
        kind = _kind(asked.shape, origin, signer)
        headers = kind.headers % {
            **asked.values,
            b"authorization": kind.form.sign(target, asked.values),
            b"content-length": b"%d" % asked.body.size,
        }
        body = PieceBody(asked.body.pieces)
        return WrittenRequest(asked.shape.method, kind.url, target, headers, body, self._timeout)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


class _Kind(NamedTuple):
    """What requests of a kind have in common for a second."""

    form: Form
    url: httpx.URL
    headers: bytes
    """All lines, to be filled in: one step where joining them was one for each."""


@lru_cache(maxsize=16)
def _kind(shape: Shape, origin: str, signer: Signer) -> _Kind:
    url = httpx.URL(origin)
    signed = {"host": url.netloc.decode("ascii"), **shape.fixed}
    headers = signed | signer.added | _UNSIGNED
    lines = [f"{name}: {text}".replace("%", "%%") for name, text in headers.items()]
    lines += [f"{name}: %({name})b" for name in (*shape.varying, "authorization", "content-length")]
    form = Form(signer, shape.method, signed, shape.varying)
    return _Kind(form, url, "".join(f"{line}\r\n" for line in lines).encode("ascii"))


async def _beginning(response: httpx.Response) -> bytes:
    """Return _ANSWER_BYTES of a body or a little more, and read no further."""
    stream = response.stream
    assert isinstance(stream, httpx.AsyncByteStream)  # noqa: S101 - for mypy
    body = b""
    try:
        async for chunk in stream:
            body += chunk
            if len(body) >= _ANSWER_BYTES:
                # Leaving the loop would leave httpx's nested generators to the garbage
                # collector; on a closed connection they end by themselves.
                await response.aclose()
    except httpx.ReadError:
        if len(body) < _ANSWER_BYTES:
            raise
    return body


def _store_error(error: httpx.RequestError) -> StoreError:
    causes = list(_causes(error))
    reason = next((str(cause) for cause in causes if str(cause)), "")
    reason = hide_userinfo_in_sentence(reason)[:_LONGEST_REASON]
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
