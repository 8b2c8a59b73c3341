"""Objects in S3, or in anything that speaks its language.

A ``put`` is one attempt. Three answers only mean that we know something wrong (the
bucket's region, the time, a token that has run out), say what is right, and need no
waiting: each is corrected once within the ``put``, and what was learned stays learned.
"""

from __future__ import annotations

import hashlib
import math
import time
from binascii import b2a_base64, hexlify
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import trio

from payloadd.errors import OperatorStoreError, SettingsError
from payloadd.model.formats.ndjson import CONTENT_TYPE, encode
from payloadd.model.keys import is_text
from payloadd.storage.s3.client import S3Client, S3Request, Shape
from payloadd.storage.s3.credentials import find_access
from payloadd.storage.s3.endpoint import find_endpoint
from payloadd.storage.s3.errors import EXPIRED_KEYS, SKEWED_CLOCK, error_of
from payloadd.storage.s3.sigv4 import BODY_HASH, Signer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from payloadd.config.parsers import S3Url
    from payloadd.config.settings import Settings
    from payloadd.model.formats.ndjson import Encoded
    from payloadd.storage.s3.credentials import Access
    from payloadd.storage.s3.response import Answer
    from payloadd.storage.s3.sigv4 import Keys

# Beside the workers' own: the probe of `check`, and connections that are being closed.
_SPARE_CONNECTIONS: Final = 8
# Bytes above which hashing (1 ms a MiB) holds up the event loop for longer than a thread costs.
_HASH_IN_THREAD: Final = 256 * 1024
_BODY_HASH: Final = BODY_HASH.encode()
_CHECKSUM: Final = b"x-amz-checksum-sha256"
_PUT: Final = Shape("PUT", {"content-type": CONTENT_TYPE}, ("x-amz-checksum-sha256", BODY_HASH))
# By Content-Encoding.
_PUTS: Final[dict[str | None, Shape]] = {
    None: _PUT,
    **{
        name: replace(_PUT, fixed={**_PUT.fixed, "content-encoding": name})
        for name in ("gzip", "zstd")
    },
}
_DELETE: Final = Shape("DELETE", {}, (BODY_HASH,))
# S3 refuses from 15 minutes on; less than this is the age of the request, not a wrong clock.
_SKEW_SECONDS: Final = 60.0


class S3Store:
    """A store in a bucket; see :class:`~payloadd.storage.api.Store` for the contract."""

    def __init__(
        self,
        settings: Settings,
        url: S3Url,
        access: Access,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._place = find_endpoint(settings, url.bucket, access.region, access.endpoint)
        self._prefix = f"{url.prefix}/" if url.prefix else ""
        self._credentials = access.credentials
        self._timeout = settings.upload_timeout
        self._client = S3Client(
            settings.max_workers + _SPARE_CONNECTIONS,
            self._timeout,
            secure=self._place.origin.startswith("https:"),
        )
        self._clock = clock
        self._offset = 0.0  # seconds that the server's clock is ahead of ours
        self._signer: Signer | None = None

    async def put(self, key: str, body: Encoded) -> None:
        """Store one object; raises StoreError."""
        if body.size <= _HASH_IN_THREAD:
            checksums = _hash(body.pieces)
        else:
            checksums = await trio.to_thread.run_sync(_hash, body.pieces, abandon_on_cancel=True)
        shape = _PUTS[body.content_encoding]
        answer = await self._send(S3Request(shape, self._prefix + key, checksums, body))
        if not answer.stored:
            raise error_of(answer)

    async def delete(self, key: str) -> None:
        """Take one object away; that it is not there is no error. Raises StoreError."""
        checksums = {_BODY_HASH: hashlib.sha256(b"").hexdigest().encode()}
        nothing = encode([], "none")
        answer = await self._send(S3Request(_DELETE, self._prefix + key, checksums, nothing))
        if not answer.stored and answer.code != "NoSuchKey":
            raise error_of(answer)

    async def identify(self) -> str:
        """Return the access key, but for its last four characters hidden, and the region."""
        keys = await self._get_keys()
        return f"access key ****{keys.access_key[-4:]}, region {self._place.region}"

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _send(self, request: S3Request) -> Answer:
        corrected: list[str] = []
        while True:
            place = self._place
            keys = self._credentials.held() or await self._get_keys()
            signer = self._signer_for(keys, place.region)
            answer = await self._client.send(request, place, signer)
            if answer.stored:
                return answer
            wrong = await self._learn(answer, signer)
            if wrong is None or wrong in corrected:
                return answer
            corrected.append(wrong)

    def _signer_for(self, keys: Keys, region: str) -> Signer:
        """Return the signer of this second, the one that there is if it will do."""
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
        """Return keys; an attempt's time is enough for any source of them."""
        try:
            with trio.fail_after(self._timeout):
                return await self._credentials.get()
        except trio.TooSlowError as error:
            reason = f"their source did not answer within {self._timeout:g} s"
            raise OperatorStoreError("NoCredentials", reason) from error

    async def _learn(self, answer: Answer, signer: Signer) -> str | None:
        """Learn from a refusal; returns what we had wrong, None when we had nothing wrong.

        What is compared is what this request was signed with: another worker may have
        learned the same meanwhile.
        """
        if answer.code in EXPIRED_KEYS:
            return "keys" if await self._credentials.renew(signer.keys) else None
        if answer.code == SKEWED_CLOCK:
            if answer.time is None or abs(answer.time - signer.moment) < _SKEW_SECONDS:
                return None
            self._offset = answer.time - self._clock()
            return "clock"
        if answer.region is not None and answer.region != signer.region:
            self._place = self._place.in_region(answer.region)
            return "region"
        return None


async def open_s3_store(settings: Settings, url: S3Url) -> S3Store:
    """Return a store for ``url``; raises SettingsError. Nothing is asked of S3 yet."""
    if not is_text(url.prefix):
        raise SettingsError(["STORE_URL: the prefix is not UTF-8"])
    return S3Store(settings, url, await find_access(settings))


def _hash(pieces: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return the headers that say what a body has to be.

    Hashed once, for the signature and for the checksum that S3 keeps with the object.

    SHA-256 is one of the algorithms that S3 takes ("Checking object integrity", S3 user guide);
    a CRC of its own would go through the bytes a second time (10-60 us for 64 KiB).
    """
    digest = hashlib.sha256(pieces[0] if pieces else b"")
    for piece in pieces[1:]:
        digest.update(piece)
    raw = digest.digest()
    # A plain header and no trailer: several S3-likes refuse those.
    return {_CHECKSUM: b2a_base64(raw, newline=False), _BODY_HASH: hexlify(raw)}
