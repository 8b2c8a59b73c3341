"""HTTP to S3: one signed request, one bounded response.

Only this module maps httpx's exceptions to :class:`~payloadd.errors.StoreError`.
"""

from __future__ import annotations

import ssl
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

import httpx

from payloadd import __version__
from payloadd.errors import (
    OperatorStoreError,
    SettingsError,
    TransientStoreError,
)
from payloadd.redaction import hide_userinfo_in_sentence
from payloadd.storage.http1.request import PieceBody, PreparedRequest
from payloadd.storage.http1.transport import CaBundleError, TrioTransport, open_transport
from payloadd.storage.s3.response import S3Response
from payloadd.storage.s3.sigv4 import SignatureTemplate

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from payloadd.errors import StoreError
    from payloadd.storage.s3.request import RequestTemplate, S3Request
    from payloadd.storage.s3.sigv4 import Signer

_CONNECT_SECONDS: Final = 10.0
_IDLE_SECONDS: Final = 10.0
"""Shorter than the 15 to 20 s after which S3 and common proxies close an idle connection."""
_BODY_BYTES: Final = 65_536
"""Bytes of a response's body that are kept."""
_LONGEST_REASON: Final = 300
_UNSIGNED: Final = {"user-agent": f"payloadd/{__version__}", "accept-encoding": "identity"}
"""Headers that a proxy may change. A compressed response could not be read within a bound."""


class S3Client:
    """A client with at most ``connections`` requests in progress; https only if ``secure``.

    Connecting takes at most ``timeout`` seconds. A request as a whole has no timeout here: the
    caller has one, and a second timer for each request was measurable.

    Raises SettingsError for invalid TLS or proxy variables of the environment.
    """

    def __init__(
        self, connections: int, timeout: float, *, secure: bool, ca_bundle: Path | None = None
    ) -> None:
        timeouts = httpx.Timeout(None, connect=min(_CONNECT_SECONDS, timeout))
        self._timeouts = timeouts.as_dict()
        try:
            self._transport = open_transport(
                connections, _IDLE_SECONDS, secure=secure, ca_bundle=ca_bundle
            )
        except CaBundleError as error:
            raise SettingsError([f"AWS_CA_BUNDLE: {error}"]) from error
        except (OSError, ImportError) as error:
            # httpx reads SSL_CERT_FILE, SSL_CERT_DIR and the proxy variables.
            raise SettingsError([f"TLS or proxy variables of the environment: {error}"]) from error
        except (ValueError, httpx.InvalidURL) as error:
            # The text of the error may repeat a part of a URL, and of a password in it.
            problem = (
                "TLS or proxy variables of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY,"
                f" NO_PROXY): one cannot be used ({type(error).__name__}); allowed is"
                " http://[user:password@]host[:port]"
            )
            raise SettingsError([problem]) from error

    async def send(
        self, request: S3Request, origin: str, target: bytes, signer: Signer
    ) -> S3Response | None:
        """Send a request to a server once, and return its response, of any status.

        None is the response that confirms a PUT without a doubt: nothing of it has to be read, and
        the transport has sent the request once.
        Raises TransientStoreError if there is no response, OperatorStoreError if TLS or a proxy
        refuses.
        """
        prepared = self._prepare(request, target, origin, signer)
        try:
            if isinstance(self._transport, TrioTransport):
                parsed = await self._transport.exchange(prepared)
                glance = request.template.glance
                confirmed = glance is not None and glance.confirms(parsed, request.values)
                if confirmed and not parsed.repeated:
                    return None
                secrets = signer.keys.secrets()
                body = parsed.body[:_BODY_BYTES]
                return S3Response(parsed.status, parsed.headers, body, secrets, parsed.repeated)
            received = await self._transport.handle_async_request(prepared)
            body = await _read_beginning(received)
        except httpx.RequestError as error:
            raise _store_error(error, origin) from error
        except UnicodeError as error:
            # Not a host name: with this endpoint the bucket cannot be a part of it.
            raise OperatorStoreError("InvalidEndpoint", str(error)) from error
        secrets = signer.keys.secrets()
        return S3Response(received.status_code, received.headers.raw, body[:_BODY_BYTES], secrets)

    def _prepare(
        self, request: S3Request, target: bytes, origin: str, signer: Signer
    ) -> PreparedRequest:
        """Return the signed request.

        All headers are made here, and the transport is called directly: ``httpx.AsyncClient``
        merges default headers, builds URLs and runs an auth flow, which was measurable.
        """
        signed = _signed_template(request.template, origin, signer)
        values = request.values
        signature = signed.signature.sign(target, values)
        head = signed.head % (target, *values, signature, request.body.size)
        body = PieceBody(request.body.pieces)
        method = request.template.method
        return PreparedRequest(method, signed.url, target, head, body, self._timeouts)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


class _SignedTemplate(NamedTuple):
    """The part that requests of one template and one signer share, for one second."""

    signature: SignatureTemplate
    url: httpx.URL
    head: bytes
    """A format string of request line and header lines."""


@lru_cache(maxsize=16)
def _signed_template(template: RequestTemplate, origin: str, signer: Signer) -> _SignedTemplate:
    url = httpx.URL(origin)
    signed = {"host": url.netloc.decode("ascii"), **template.fixed}
    headers = signed | signer.added | _UNSIGNED
    lines = [f"{name}: {text}".replace("%", "%%") for name, text in headers.items()]
    lines += [f"{name}: %b" for name in template.varying]
    lines += ["authorization: %b", "content-length: %d"]
    signature = SignatureTemplate(signer, template.method, signed, template.varying)
    request_line = f"{template.method} %b HTTP/1.1"
    text = "".join(f"{line}\r\n" for line in (request_line, *lines, ""))
    return _SignedTemplate(signature, url, text.encode("ascii"))


async def _read_beginning(response: httpx.Response) -> bytes:
    """Return at least the first 64 KiB of a body, or all of it if it is shorter."""
    stream = response.stream
    assert isinstance(stream, httpx.AsyncByteStream)  # noqa: S101 - for mypy
    body = b""
    try:
        async for chunk in stream:
            body += chunk
            if len(body) >= _BODY_BYTES:
                # A break would leave httpx's nested generators to the garbage collector. On a
                # closed connection they end.
                await response.aclose()
    except httpx.ReadError:
        if len(body) < _BODY_BYTES:
            raise
    return body


def _store_error(error: httpx.RequestError, origin: str) -> StoreError:
    """Return the store error for an error of httpx, without passwords of proxy URLs."""
    causes = list(_causes(error))
    reason = next((str(cause) for cause in causes if str(cause)), "")
    reason = f"{hide_userinfo_in_sentence(reason)[:_LONGEST_REASON]} ({origin})"
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return OperatorStoreError("CertificateError", reason)
    if isinstance(error, httpx.ProxyError):
        return OperatorStoreError("ProxyError", reason)
    return TransientStoreError(type(error).__name__, reason)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes: httpx's own errors often have no text."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
