"""The keys that requests are signed with: static ones, or botocore's provider chain.

The chain (environment, profiles, web identity, SSO, processes, container and instance
metadata) is botocore's because nobody should write it again. It blocks for as long as
its sources like, so it runs in a thread of its own that a drain does not wait for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import trio

from payloadd.config.parsers import endpoint_url
from payloadd.errors import OperatorStoreError, SettingsError
from payloadd.storage.s3.credential_errors import failure_text
from payloadd.storage.s3.sigv4 import Keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from botocore.credentials import Credentials as BotocoreCredentials
    from botocore.session import Session

    from payloadd.config.settings import Settings

# However many workers ask, a source that has nothing is not asked more often.
_PAUSE_SECONDS: Final = 1.0


class Credentials(Protocol):
    """Where keys come from."""

    def held(self) -> Keys | None:
        """Return keys that hold now, if ``get`` would return them without asking anybody."""
        ...

    async def get(self) -> Keys:
        """Return keys that hold now; raises OperatorStoreError when there are none."""
        ...

    async def renew(self, refused: Keys) -> bool:
        """Return whether there are other keys than the ones that S3 refused."""
        ...


@dataclass(frozen=True, slots=True)
class StaticCredentials:
    """Keys that are part of the settings, and stay."""

    keys: Keys

    def held(self) -> Keys:
        """Return the keys."""
        return self.keys

    async def get(self) -> Keys:
        """Return the keys."""
        return self.keys

    async def renew(self, refused: Keys) -> bool:
        """Return False: there are no others."""
        del refused
        return False


@dataclass(frozen=True, slots=True)
class _Held:
    """Keys, and the object of botocore's that knows how long they hold."""

    source: BotocoreCredentials
    keys: Keys

    def fresh(self) -> bool:
        """Return whether it is too early to think of the next ones (botocore: 15 minutes)."""
        needed = getattr(self.source, "refresh_needed", None)
        return needed is None or not needed()

    def usable(self) -> bool:
        """Return whether they have not expired."""
        needed = getattr(self.source, "refresh_needed", None)
        return needed is None or not needed(refresh_in=0)


class ChainCredentials:
    """Keys of botocore's chain, replaced before they expire.

    Ahead of expiry one ``get`` fetches the next keys while all others go on with the ones
    held; if that fails, so does it. Without usable keys every ``get`` waits for the fetch.
    """

    def __init__(self, new_session: Callable[[], Session]) -> None:
        self._new_session = new_session
        self._held: _Held | None = None
        self._failure = ""
        self._asked = -math.inf
        self._lock = trio.Lock()
        self._thread = trio.CapacityLimiter(1)

    def held(self) -> Keys | None:
        """Return the keys, unless it is time to look for the next ones and nobody does."""
        held = self._held
        if held is not None and (held.fresh() or (self._lock.locked() and held.usable())):
            return held.keys
        return None

    async def get(self) -> Keys:
        """Return keys that hold now; raises OperatorStoreError when there are none."""
        keys = self.held()
        if keys is not None:
            return keys
        async with self._lock:
            if self._held is None or not self._held.fresh():
                await self._ask(anew=False)
        if self._held is None or not self._held.usable():
            raise OperatorStoreError("NoCredentials", self._failure)
        return self._held.keys

    async def renew(self, refused: Keys) -> bool:
        """Ask the whole chain again unless that was done since; see the protocol."""
        async with self._lock:
            if self._held is not None and self._held.keys == refused:
                await self._ask(anew=True)
        return self._held is not None and self._held.keys != refused

    async def _ask(self, *, anew: bool) -> None:
        """Fetch keys if the last time is long enough ago; a failure is kept, not raised."""
        if trio.current_time() < self._asked + _PAUSE_SECONDS:
            return
        try:
            # An abandoned fetch goes on, holds the limiter, and still leaves what it got.
            await trio.to_thread.run_sync(
                self._fetch, anew, self._held, limiter=self._thread, abandon_on_cancel=True
            )
        except Exception as error:  # noqa: BLE001 - providers raise whatever they like
            self._failure = failure_text(error)
        self._asked = trio.current_time()

    def _fetch(self, anew: bool, seen: _Held | None) -> None:  # noqa: FBT001 - run_sync takes no keywords
        """Put keys into ``_held``; in the thread."""
        held = self._held
        if held is not seen and held is not None and held.fresh():
            return  # the fetch that was abandoned before this one brought them
        source = None if anew or held is None else held.source
        source = source or self._new_session().get_credentials()
        if source is None:
            raise LookupError("none in environment, profiles or metadata services")
        access_key, secret_key, token, *_ = source.get_frozen_credentials()
        if not access_key or not secret_key:
            raise LookupError("half a pair of keys")
        self._held = _Held(source, Keys(access_key, secret_key, token))


@dataclass(frozen=True, slots=True)
class Access:
    """How to reach S3: the keys, and region and endpoint where they are configured."""

    credentials: Credentials
    region: str | None
    endpoint: str | None


async def find_access(settings: Settings) -> Access:
    """Return what the settings say, with botocore's chain for what they leave open.

    With keys and region in the settings botocore is not even imported (it takes half a
    second and 20 MB), so an ``endpoint_url`` of a profile counts only without them. Raises
    SettingsError when the profiles cannot be read. Missing keys are no error here: an operator
    may add them while the daemon runs.
    """
    try:
        static = _static(settings)
    except ValueError as error:
        raise SettingsError([f"AWS_ACCESS_KEY_ID, AWS_SESSION_TOKEN: {error}"]) from None
    if static is not None and settings.aws_region is not None:
        return Access(static, settings.aws_region, settings.aws_endpoint_url)
    try:
        region, endpoint = await trio.to_thread.run_sync(_configured, abandon_on_cancel=True)
    except SettingsError:
        raise
    except Exception as error:  # profiles that are missing, wrong, or not readable
        raise SettingsError([f"AWS configuration: {failure_text(error)}"]) from error
    return Access(
        static or ChainCredentials(_new_session),
        settings.aws_region or region,
        settings.aws_endpoint_url or endpoint,
    )


def _static(settings: Settings) -> StaticCredentials | None:
    access_key = settings.aws_access_key_id
    secret_key = settings.aws_secret_access_key
    if access_key is None or secret_key is None:
        return None
    return StaticCredentials(Keys(access_key, secret_key, settings.aws_session_token))


def _new_session() -> Session:
    from botocore.session import Session  # noqa: PLC0415 - see find_access

    return Session()


def _configured() -> tuple[str | None, str | None]:
    """Return region and S3 endpoint of environment and profile; in a thread."""
    from botocore.configprovider import ConfiguredEndpointProvider  # noqa: PLC0415 - as above

    session = _new_session()
    profile = session.get_scoped_config()
    region = session.get_config_variable("region")
    if session.get_config_variable("ignore_configured_endpoint_urls"):
        return region, None
    endpoint = ConfiguredEndpointProvider(session.full_config, profile, "s3").provide()
    try:
        return region, None if endpoint is None else endpoint_url(endpoint)
    except ValueError as error:
        raise SettingsError([f"AWS configuration: endpoint_url: allowed is {error}"]) from None
