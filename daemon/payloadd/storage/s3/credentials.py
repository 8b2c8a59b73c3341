"""The keys that sign requests: the keys of the settings, or those of botocore's credential chain.

The chain (environment, profiles, web identity, SSO, processes, metadata of containers and
instances) is botocore's own, so that it works as in every AWS tool. It blocks for as long as its
sources take. Therefore it runs in a thread of its own, for which a drain does not wait.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import trio

from payloadd.config.settings import reread_credentials
from payloadd.errors import OperatorStoreError, SettingsError
from payloadd.storage.s3.aws_config import (
    AwsConfiguration,
    configuration_of_settings,
    needs_botocore,
    new_session,
    read_configuration,
)
from payloadd.storage.s3.credential_errors import failure_text
from payloadd.storage.s3.credential_process import (
    MFA_REFUSED,
    ProcessGroups,
    guard,
    mfa_profile,
)
from payloadd.storage.s3.endpoint_rules import EndpointRules
from payloadd.storage.s3.sigv4 import Keys

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from botocore.credentials import Credentials as BotocoreCredentials
    from botocore.session import Session

    from payloadd.config.settings import Settings

_FETCH_PAUSE_SECONDS: Final = 1.0
"""The shortest time between two fetches, however many workers need keys."""
_RENEWAL_PAUSE_SECONDS: Final = 10.0
"""The same while the held keys are valid, but not for long: botocore logs each failure."""
_REFUSAL_PAUSE_SECONDS: Final = 10.0
"""The shortest time between two fetches after refusals: S3 may refuse the next keys too."""


class Credentials(Protocol):
    """A source of keys."""

    def held(self) -> Keys | None:
        """Return valid keys if ``get`` would return them without a fetch; otherwise None."""
        ...

    def expire(self) -> float | None:
        """Return when the held keys expire, in Unix time; None if they do not, or not known."""
        ...

    async def get(self) -> Keys:
        """Return valid keys. Raises OperatorStoreError if there are none."""
        ...

    async def renew(self, refused: Keys) -> bool:
        """Return whether there are other keys than ``refused``, which S3 has refused."""
        ...

    async def reload(self) -> bool:
        """Read files and run processes again; return whether the keys are others than before."""
        ...

    def close(self) -> None:
        """End the processes that fetch keys; no other call follows."""
        ...


@dataclass(slots=True)
class StaticCredentials:
    """The keys of the settings; ``read_again`` returns those of ``$CREDENTIALS_DIRECTORY``."""

    keys: Keys
    read_again: Callable[[], Keys | None] = lambda: None

    def held(self) -> Keys:
        """Return the keys."""
        return self.keys

    def expire(self) -> None:
        """Return None: nothing says when keys of the settings expire."""

    async def get(self) -> Keys:
        """Return the keys."""
        return self.keys

    async def renew(self, refused: Keys) -> bool:
        """Read the files again, unless other keys than ``refused`` are held already."""
        return self.keys != refused or await self.reload()

    async def reload(self) -> bool:
        """Read the files again; return whether the keys are others than before."""
        before = self.keys
        found = await trio.to_thread.run_sync(self.read_again, abandon_on_cancel=True)
        self.keys = found or before
        return self.keys != before

    def close(self) -> None:
        """Do nothing: there is no process."""


class RefusalLimit:
    """Look for other keys after S3 has refused keys, but not after each refusal.

    A refusal may mean that keys were rotated: a file or a secret store then has the next ones. It
    may as well mean that the right to write is missing, which no fetch changes.
    """

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._next = -math.inf

    async def renew(self, refused: Keys) -> bool:
        """Return whether there are other keys than ``refused``; fetch keys at most every 10 s."""
        held = self._credentials.held()
        if held is not None and held != refused:
            return True
        now = trio.current_time()
        if now < self._next:
            return False
        self._next = now + _REFUSAL_PAUSE_SECONDS
        return await self._credentials.reload()


@dataclass(frozen=True, slots=True)
class _HeldKeys:
    """Keys, and botocore's object, which knows when they expire."""

    source: BotocoreCredentials
    keys: Keys

    def fresh(self) -> bool:
        """Return whether they are valid for long: botocore renews 15 minutes before expiry."""
        needed = getattr(self.source, "refresh_needed", None)
        return needed is None or not needed()

    def usable(self) -> bool:
        """Return whether they have not expired."""
        needed = getattr(self.source, "refresh_needed", None)
        return needed is None or not needed(refresh_in=0)

    def expire(self) -> float | None:
        """Return when they expire, in Unix time; None if they do not."""
        # botocore has no public name for it.
        expiry: datetime | None = getattr(self.source, "_expiry_time", None)
        return None if expiry is None else expiry.timestamp()


class ChainCredentials:
    """Keys of botocore's chain, replaced before they expire.

    Some time before expiry, one ``get`` fetches the next keys while all others return the held
    keys; if the fetch fails, it returns the held keys too. Without usable keys, every ``get`` waits
    for the fetch.
    """

    def __init__(
        self, new_session: Callable[[], Session], processes: ProcessGroups | None = None
    ) -> None:
        self._new_session = new_session
        self._processes = processes
        self._held: _HeldKeys | None = None
        self._failure = ""
        self._next_fetch = -math.inf
        self._lock = trio.Lock()
        self._thread = trio.CapacityLimiter(1)

    def held(self) -> Keys | None:
        """Return the held keys, or None if the caller has to fetch or to wait for a fetch."""
        held = self._held
        if held is not None and (held.fresh() or (self._lock.locked() and held.usable())):
            return held.keys
        return None

    def expire(self) -> float | None:
        """Return when the held keys expire, in Unix time; None without such keys."""
        return None if self._held is None else self._held.expire()

    async def get(self) -> Keys:
        """Return valid keys. Raises OperatorStoreError with the last failure if there are none."""
        keys = self.held()
        if keys is not None:
            return keys
        async with self._lock:
            if self._held is None or not self._held.fresh():
                await self._fetch(new_source=False)
        if self._held is None or not self._held.usable():
            raise OperatorStoreError("NoCredentials", self._failure)
        return self._held.keys

    async def renew(self, refused: Keys) -> bool:
        """Run the whole chain again, unless other keys than ``refused`` are held already."""
        async with self._lock:
            if self._held is not None and self._held.keys == refused:
                await self._fetch(new_source=True)
        return self._held is not None and self._held.keys != refused

    async def reload(self) -> bool:
        """Run the whole chain again, also a moment after the last fetch."""
        async with self._lock:
            before = self._held
            self._next_fetch = -math.inf
            await self._fetch(new_source=True)
        return self._held is not None and (before is None or before.keys != self._held.keys)

    def close(self) -> None:
        """Kill the processes of a fetch that is in progress."""
        if self._processes is not None:
            self._processes.close()

    async def _fetch(self, *, new_source: bool) -> None:
        """Fetch keys unless the last fetch was a moment ago; a failure is stored, not raised."""
        if trio.current_time() < self._next_fetch:
            return
        try:
            # A fetch that is abandoned still runs, holds the limiter, and stores its keys.
            await trio.to_thread.run_sync(
                self._fetch_in_thread,
                new_source,
                self._held,
                limiter=self._thread,
                abandon_on_cancel=True,
            )
        except Exception as error:  # noqa: BLE001 - providers raise exceptions of any class
            self._failure = failure_text(error)
        held = self._held
        renewable = held is not None and held.usable() and not held.fresh()
        pause = _RENEWAL_PAUSE_SECONDS if renewable else _FETCH_PAUSE_SECONDS
        self._next_fetch = trio.current_time() + pause

    def _fetch_in_thread(self, new_source: bool, seen: _HeldKeys | None) -> None:  # noqa: FBT001 - run_sync takes no keywords
        """Fetch keys and store them. ``seen`` are the keys that were held before."""
        held = self._held
        if held is not seen and held is not None and held.fresh():
            return  # an abandoned fetch has stored them
        source = None if new_source or held is None else held.source
        source = source or self._new_session().get_credentials()
        if source is None:
            raise LookupError("none in environment, profiles or metadata services")
        access_key, secret_key, token, *_ = source.get_frozen_credentials()
        if not access_key or not secret_key:
            raise LookupError("an access key without a secret key, or a secret key alone")
        self._held = _HeldKeys(source, Keys(access_key, secret_key, token))


@dataclass(frozen=True, slots=True)
class Access:
    """The keys, what is configured besides, and the endpoint rules unless they are not needed."""

    credentials: Credentials
    configuration: AwsConfiguration
    rules: EndpointRules | None = None


async def find_access(settings: Settings) -> Access:
    """Return keys, configuration and rules; botocore completes what the settings do not have.

    Missing keys are no error: an operator may add them while the daemon runs. Raises SettingsError
    for keys that cannot be sent, for profiles that cannot be read, and for a profile that needs the
    code of an MFA device.
    """
    try:
        static = _static(settings)
    except ValueError as error:
        raise SettingsError([f"AWS_ACCESS_KEY_ID, AWS_SESSION_TOKEN: {error}"]) from None
    if static is not None and not needs_botocore(settings):
        return Access(static, configuration_of_settings(settings))
    try:
        configuration, rules = await trio.to_thread.run_sync(
            _ask_botocore, settings, static is None, abandon_on_cancel=True
        )
    except SettingsError:
        raise
    except Exception as error:  # profiles that are missing, invalid or not readable
        raise SettingsError([f"AWS configuration: {failure_text(error)}"]) from error
    return Access(static or _chain(settings), configuration, rules)


def _static(settings: Settings) -> StaticCredentials | None:
    access_key = settings.aws_access_key_id
    secret_key = settings.aws_secret_access_key
    if access_key is None or secret_key is None:
        return None
    keys = Keys(access_key, secret_key, settings.aws_session_token)
    return StaticCredentials(keys, _keys_of_files)


def _keys_of_files() -> Keys | None:
    """Return the keys that are in ``$CREDENTIALS_DIRECTORY`` now; None without a valid pair."""
    texts = reread_credentials("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
    access_key, secret_key, token = texts
    try:
        return Keys(access_key, secret_key, token or None) if access_key and secret_key else None
    except ValueError:
        return None


def _ask_botocore(settings: Settings, keys_needed: bool) -> tuple[AwsConfiguration, EndpointRules]:  # noqa: FBT001 - run_sync takes no keywords
    """Return the configuration of environment and profile, and the rules; runs in a thread."""
    session = new_session(settings)
    configuration = read_configuration(settings, session)
    profile = mfa_profile(session) if keys_needed else None
    if profile is not None:
        where = f"AWS configuration: profile {profile!r} has mfa_serial"
        raise SettingsError([MFA_REFUSED.format(where=where)])
    return configuration, EndpointRules(session)


def _chain(settings: Settings) -> ChainCredentials:
    processes = ProcessGroups()
    return ChainCredentials(partial(_guarded_session, settings, processes), processes)


def _guarded_session(settings: Settings, processes: ProcessGroups) -> Session:
    session = new_session(settings)
    guard(session, processes)
    return session
