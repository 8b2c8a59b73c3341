"""Requests to S3: each is signed and sent, again after each correction.

Some refusals mean that the daemon has a wrong region, a wrong clock or keys that are no longer
valid, and they (or the credential chain) name the right ones. Each is corrected at once, at most
once for a request, and the corrected value is kept. A redirect is followed and not kept.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

import trio

from payloadd.errors import InvalidObjectError, OperatorStoreError
from payloadd.observe.logs import get_logger
from payloadd.storage.s3.client import S3Client
from payloadd.storage.s3.credentials import RefusalLimit
from payloadd.storage.s3.endpoint import find_endpoint
from payloadd.storage.s3.errors import EXPIRED_KEYS, REFUSED_KEYS, SKEWED_CLOCK
from payloadd.storage.s3.redirects import follow
from payloadd.storage.s3.sigv4 import Signer

if TYPE_CHECKING:
    from collections.abc import Callable

    from payloadd.config.parsers import S3Url
    from payloadd.config.settings import Settings
    from payloadd.storage.s3.aws_config import AwsConfiguration
    from payloadd.storage.s3.credentials import Access
    from payloadd.storage.s3.redirects import Target
    from payloadd.storage.s3.request import S3Request
    from payloadd.storage.s3.response import S3Response
    from payloadd.storage.s3.sigv4 import Keys

log = get_logger(__name__)

_SPARE_CONNECTIONS: Final = 8
"""Connections beside one for each worker: for ``payloadd check``, and those being closed."""
_SKEW_SECONDS: Final = 60.0
"""A smaller difference is the age of the request, not a wrong clock; S3 allows 15 minutes."""
_LONGEST_FETCH: Final = 8.0
"""Seconds that an upload waits for keys: less than the ten after which it is reported that the
store does not answer. The fetch goes on, and the next attempt uses its keys."""
_MOST_REDIRECTS: Final = 3
"""Redirects that are followed for one request."""


class Learnt:
    """What the answers of a store have taught the daemon: one log line for each new fact."""

    def __init__(self) -> None:
        self._facts: dict[str, str] = {}

    def note(self, what: str, fact: str) -> None:
        """Keep a fact, and log it unless it is known. ``what`` is its kind."""
        if self._facts.get(what) != fact:
            self._facts[what] = fact
            log.info("store_learnt", what=what, fact=fact)

    def lines(self) -> list[str]:
        """Return all facts, one line each."""
        return [f"{what}: {fact}" for what, fact in self._facts.items()]


class Sender:
    """Sends requests to one bucket."""

    def __init__(
        self, settings: Settings, url: S3Url, access: Access, clock: Callable[[], float] = time.time
    ) -> None:
        """Prepare requests; none is sent yet. Raises SettingsError."""
        self._endpoint = find_endpoint(url.bucket, access.configuration, access.rules)
        self._credentials = access.credentials
        self._refusals = RefusalLimit(access.credentials)
        self._timeout = settings.upload_timeout
        # Earlier than the timeout of the upload, which would name the store as the cause.
        self._upload_wait = min(_LONGEST_FETCH, 0.8 * self._timeout)
        self._client = S3Client(
            settings.max_workers + _SPARE_CONNECTIONS,
            self._timeout,
            secure=self._endpoint.origin.startswith("https:"),
            ca_bundle=access.configuration.ca_bundle,
        )
        self._clock = clock
        self._offset = 0.0  # seconds by which the server's clock is ahead
        self._signer: Signer | None = None
        self.learnt = Learnt()

    @property
    def origin(self) -> str:
        """The server: scheme, host and port."""
        return self._endpoint.origin

    @property
    def configuration(self) -> AwsConfiguration:
        """Region and endpoint as they are configured, or were corrected."""
        return self._endpoint.configuration

    async def send(self, request: S3Request) -> S3Response | None:
        """Send a request, again after each correction, and return the last response.

        None is the response that confirms a PUT without a doubt. Raises StoreError if there is no
        response.
        """
        corrected: tuple[str, ...] = ()
        redirected: Target | None = None
        redirects = 0
        while True:
            endpoint = self._endpoint
            keys = self._credentials.held() or await self._keys(self._upload_wait)
            signer = self._signer_for(keys, endpoint.region)
            if redirected is None:
                origin = endpoint.origin
                try:
                    target = endpoint.target(request.key).encode("ascii")
                except UnicodeEncodeError as error:
                    reason = f"not Unicode text: {request.key!r}"
                    raise InvalidObjectError("InvalidKey", reason) from error
            else:
                origin, target = redirected
            response = await self._client.send(request, origin, target, signer)
            if response is None or response.successful:
                return response
            wrong = await self._correct(response, signer)
            if wrong is not None and wrong not in corrected:
                corrected += (wrong,)
                redirected = None if wrong == "region" else redirected
                continue
            redirected = follow(response, endpoint.origin, endpoint.bucket, origin)
            if redirected is None or redirects == _MOST_REDIRECTS:
                return response
            redirects += 1
            self.learnt.note("redirect", f"{endpoint.origin} redirects to {redirected.origin}")

    async def _keys(self, within: float) -> Keys:
        """Return keys. Raises OperatorStoreError if there are none within ``within`` seconds."""
        try:
            with trio.fail_after(within):
                return await self._credentials.get()
        except trio.TooSlowError as error:
            reason = f"the source of the keys did not respond within {within:g} s"
            raise OperatorStoreError("NoCredentials", reason) from error

    async def identify(self) -> str:
        """Return the last four characters of the access key, and the region.

        Raises OperatorStoreError if there are no keys.
        """
        keys = await self._keys(self._timeout)
        return f"access key ****{keys.access_key[-4:]}, region {self._endpoint.region}"

    def credentials_expire(self) -> float | None:
        """Return when the held keys expire, in Unix time; None if they do not, or not known."""
        return self._credentials.expire()

    async def reload(self) -> None:
        """Read the files and run the processes again that the keys come from."""
        log.info("keys_reloaded", changed=await self._credentials.reload())

    async def aclose(self) -> None:
        """Close all connections, and end the processes that fetch keys."""
        self._credentials.close()
        await self._client.aclose()

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

    async def _correct(self, response: S3Response, signer: Signer) -> str | None:
        """Correct the value that a response shows to be wrong, and return its name, or None.

        The response is compared with the values that signed its request: another worker may have
        corrected them meanwhile.
        """
        if response.code in EXPIRED_KEYS:
            return "keys" if await self._credentials.renew(signer.keys) else None
        if response.code in REFUSED_KEYS and await self._refusals.renew(signer.keys):
            return "keys"
        if response.code == SKEWED_CLOCK:
            return "clock" if self._correct_clock(response, signer) else None
        if response.region is not None and response.region != signer.region:
            return "region" if await self._correct_region(response.region) else None
        return None

    def _correct_clock(self, response: S3Response, signer: Signer) -> bool:
        """Use the clock of the server, and return whether it differs from that of the request."""
        now = response.server_time
        if now is None or abs(now - signer.moment) < _SKEW_SECONDS:
            return False
        self._offset = now - self._clock()
        way = "ahead of" if self._offset > 0 else "behind"
        self.learnt.note("clock", f"the store's is {abs(self._offset):.0f} s {way} this machine's")
        return True

    async def _correct_region(self, region: str) -> bool:
        """Use the endpoint of another region, and return whether there is one."""
        before = self._endpoint
        self._endpoint = await before.in_region(region)
        if self._endpoint is before:
            return False
        self.learnt.note("region", f"{region}, not {before.region}; set AWS_REGION={region}")
        if self._endpoint.origin != before.origin:
            self.learnt.note("endpoint", f"{self._endpoint.origin}, not {before.origin}")
        return True
