"""A store in a bucket of S3, or of any server that speaks its protocol.

A ``put`` is one attempt. Three errors mean that the daemon has a wrong region, a wrong clock or an
expired session token, and their responses (or the credential chain) name the right one. Each is
corrected at once, at most once in a ``put``, and the corrected value is kept.
"""

from __future__ import annotations

import hashlib
import math
import time
from binascii import b2a_base64, hexlify
from functools import cache
from typing import TYPE_CHECKING, Final

import trio

from payloadd.errors import OperatorStoreError, SettingsError
from payloadd.model.formats.api import EncodedObject
from payloadd.model.keys import is_text
from payloadd.storage.s3.client import RequestTemplate, S3Client, S3Request
from payloadd.storage.s3.credentials import find_access
from payloadd.storage.s3.endpoint import find_endpoint
from payloadd.storage.s3.errors import EXPIRED_KEYS, SKEWED_CLOCK, error_of
from payloadd.storage.s3.sigv4 import BODY_HASH, Signer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from payloadd.config.parsers import S3Url
    from payloadd.config.settings import Settings
    from payloadd.model.job import Members
    from payloadd.storage.s3.credentials import Access
    from payloadd.storage.s3.response import S3Response
    from payloadd.storage.s3.sigv4 import Keys

_SPARE_CONNECTIONS: Final = 8
"""Connections beside one for each worker: for ``payloadd check``, and those being closed."""
_HASH_IN_THREAD: Final = 256 * 1024
"""Bytes above which hashing blocks the event loop for longer than a thread costs."""
_BODY_HASH: Final = BODY_HASH.encode()
_CHECKSUM: Final = b"x-amz-checksum-sha256"
_DELETE: Final = RequestTemplate("DELETE", {}, (BODY_HASH,))
_NO_BODY: Final = EncodedObject((), "", None)
_NO_BODY_HASH: Final = {_BODY_HASH: hashlib.sha256(b"").hexdigest().encode()}
_SKEW_SECONDS: Final = 60.0
"""A smaller difference is the age of the request, not a wrong clock; S3 allows 15 minutes."""


class S3Store:
    """A store in a bucket; see :class:`~payloadd.storage.api.Store`."""

    def __init__(
        self,
        settings: Settings,
        url: S3Url,
        access: Access,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._endpoint = find_endpoint(settings, url.bucket, access.region, access.endpoint)
        self._prefix = f"{url.prefix}/" if url.prefix else ""
        self._credentials = access.credentials
        self._timeout = settings.upload_timeout
        self._client = S3Client(
            settings.max_workers + _SPARE_CONNECTIONS,
            self._timeout,
            secure=self._endpoint.origin.startswith("https:"),
        )
        self._clock = clock
        self._offset = 0.0  # seconds by which the server's clock is ahead
        self._signer: Signer | None = None

    async def put(self, key: str, body: EncodedObject, members: Members, *, repeat: bool) -> None:
        """Store one object in one attempt. Raises StoreError."""
        del members, repeat
        if body.size <= _HASH_IN_THREAD:
            checksums = _hash(body.pieces)
        else:
            checksums = await trio.to_thread.run_sync(_hash, body.pieces, abandon_on_cancel=True)
        template = _put_template(body.content_type, body.content_encoding)
        response = await self._send(S3Request(template, self._prefix + key, checksums, body))
        if not response.stored:
            raise error_of(response)

    async def delete(self, key: str) -> None:
        """Delete one object; a missing object is no error. Raises StoreError."""
        request = S3Request(_DELETE, self._prefix + key, _NO_BODY_HASH, _NO_BODY)
        response = await self._send(request)
        if not response.stored and response.code != "NoSuchKey":
            raise error_of(response)

    async def identify(self) -> str:
        """Return the last four characters of the access key, and the region.

        Raises OperatorStoreError if there are no keys.
        """
        keys = await self._get_keys()
        return f"access key ****{keys.access_key[-4:]}, region {self._endpoint.region}"

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _send(self, request: S3Request) -> S3Response:
        """Send a request, again after each correction, and return the last response.

        Raises StoreError if there is no response.
        """
        corrected: list[str] = []
        while True:
            endpoint = self._endpoint
            keys = self._credentials.held() or await self._get_keys()
            signer = self._signer_for(keys, endpoint.region)
            response = await self._client.send(request, endpoint, signer)
            if response.stored:
                return response
            wrong = await self._correct(response, signer)
            if wrong is None or wrong in corrected:
                return response
            corrected.append(wrong)

    def _signer_for(self, keys: Keys, region: str) -> Signer:
        """Return the signer of this second: the last signer if it is still the right one."""
        moment = math.floor(self._clock() + self._offset)
        signer = self._signer
        if (
            signer is None
            or signer.moment != moment
            or signer.keys is not keys
            or signer.region != region
        ):
            signer = self._signer = Signer(keys, region, moment)
        return signer

    async def _get_keys(self) -> Keys:
        """Return keys, within the time of one attempt.

        Raises OperatorStoreError if there are none.
        """
        try:
            with trio.fail_after(self._timeout):
                return await self._credentials.get()
        except trio.TooSlowError as error:
            reason = f"the source of the keys did not respond within {self._timeout:g} s"
            raise OperatorStoreError("NoCredentials", reason) from error

    async def _correct(self, response: S3Response, signer: Signer) -> str | None:
        """Correct the value that a response shows to be wrong, and return its name, or None.

        The response is compared with the values that signed its request: another worker may have
        corrected them meanwhile.
        """
        if response.code in EXPIRED_KEYS:
            return "keys" if await self._credentials.renew(signer.keys) else None
        if response.code == SKEWED_CLOCK:
            now = response.server_time
            if now is None or abs(now - signer.moment) < _SKEW_SECONDS:
                return None
            self._offset = now - self._clock()
            return "clock"
        if response.region is not None and response.region != signer.region:
            self._endpoint = self._endpoint.in_region(response.region)
            return "region"
        return None


async def open_s3_store(settings: Settings, url: S3Url) -> S3Store:
    """Return a store for ``url``; no request is sent yet. Raises SettingsError."""
    if not is_text(url.prefix):
        raise SettingsError(["STORE_URL: the prefix is not UTF-8"])
    return S3Store(settings, url, await find_access(settings))


@cache
def _put_template(content_type: str, content_encoding: str | None) -> RequestTemplate:
    """Return the template of the PUTs of one object format."""
    headers = {"content-type": content_type}
    if content_encoding is not None:
        headers["content-encoding"] = content_encoding
    return RequestTemplate("PUT", headers, ("x-amz-checksum-sha256", BODY_HASH))


def _hash(pieces: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return the headers with the hash of a body: for the signature, and for S3 to keep.

    One SHA-256 serves both: it is one of the checksum algorithms of S3 ("Checking object integrity
    for data uploads in Amazon S3", Amazon S3 user guide). A CRC would read the bytes a second time.
    """
    digest = hashlib.sha256(pieces[0] if pieces else b"")
    for piece in pieces[1:]:
        digest.update(piece)
    raw = digest.digest()
    # A header and no trailer: several S3 servers refuse trailers.
    return {_CHECKSUM: b2a_base64(raw, newline=False), _BODY_HASH: hexlify(raw)}
