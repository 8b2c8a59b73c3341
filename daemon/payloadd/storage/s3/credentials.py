"""The keys that sign requests: the keys of the settings, or those of botocore's credential chain.

The chain (environment, profiles, web identity, SSO, processes, metadata of containers and
instances) is botocore's own, so that it works as in every AWS tool. It blocks for as long as its
sources take. Therefore it runs in a thread of its own, for which a drain does not wait.

Errors of the chain may contain secrets: the standard error of a ``credential_process``, the
response of a metadata service, an endpoint's URL with a password. Only the texts of errors that are
known to contain names and reasons are shown; of all other errors, the class.
"""

from __future__ import annotations

import math
import subprocess
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import trio

from payloadd.config.parsers import endpoint_url
from payloadd.errors import OperatorStoreError, SettingsError
from payloadd.redaction import hide_userinfo_in_sentence
from payloadd.storage.s3.sigv4 import Keys

if TYPE_CHECKING:
    from collections.abc import Callable

    from botocore.credentials import Credentials as BotocoreCredentials
    from botocore.session import Session

    from payloadd.config.settings import Settings

_FETCH_PAUSE_SECONDS: Final = 1.0
"""The shortest time between two fetches, however many workers need keys."""

_LONGEST_REASON: Final = 300
_LONGEST_NAME: Final = 64
_QUOTING_ERRORS: Final = frozenset(
    {"MetadataRetrievalError", "HTTPClientError", "InvalidProxiesConfigError"}
)
"""Errors of botocore that quote a response or a part of a URL."""
_PROCESS_PROVIDER: Final = "custom-process"


class Credentials(Protocol):
    """A source of keys."""

    def held(self) -> Keys | None:
        """Return valid keys if ``get`` would return them without a fetch; otherwise None."""
        ...

    async def get(self) -> Keys:
        """Return valid keys. Raises OperatorStoreError if there are none."""
        ...

    async def renew(self, refused: Keys) -> bool:
        """Return whether there are other keys than ``refused``, which S3 has refused."""
        ...


@dataclass(frozen=True, slots=True)
class StaticCredentials:
    """The keys of the settings, which never change."""

    keys: Keys

    def held(self) -> Keys:
        """Return the keys."""
        return self.keys

    async def get(self) -> Keys:
        """Return the keys."""
        return self.keys

    async def renew(self, refused: Keys) -> bool:
        """Return False: there are no other keys."""
        del refused
        return False


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


class ChainCredentials:
    """Keys of botocore's chain, replaced before they expire.

    Some time before expiry, one ``get`` fetches the next keys while all others return the held
    keys; if the fetch fails, it returns the held keys too. Without usable keys, every ``get`` waits
    for the fetch.
    """

    def __init__(self, new_session: Callable[[], Session]) -> None:
        self._new_session = new_session
        self._held: _HeldKeys | None = None
        self._failure = ""
        self._last_fetch = -math.inf
        self._lock = trio.Lock()
        self._thread = trio.CapacityLimiter(1)

    def held(self) -> Keys | None:
        """Return the held keys, or None if the caller has to fetch or to wait for a fetch."""
        held = self._held
        if held is not None and (held.fresh() or (self._lock.locked() and held.usable())):
            return held.keys
        return None

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

    async def _fetch(self, *, new_source: bool) -> None:
        """Fetch keys unless the last fetch was a moment ago; a failure is stored, not raised."""
        if trio.current_time() < self._last_fetch + _FETCH_PAUSE_SECONDS:
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
        self._last_fetch = trio.current_time()

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
    """The keys, and region and endpoint if they are configured."""

    credentials: Credentials
    region: str | None
    endpoint: str | None


async def find_access(settings: Settings) -> Access:
    """Return keys, region and endpoint of the settings; botocore's chain completes them.

    If the settings have keys and region, botocore is not imported, which saves time and memory; an
    ``endpoint_url`` of a profile then has no effect. Missing keys are no error: an operator may add
    them while the daemon runs. Raises SettingsError for keys that cannot be sent, and for profiles
    that cannot be read.
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
    except Exception as error:  # profiles that are missing, invalid or not readable
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
    """Return region and S3 endpoint of environment and profile; runs in a thread."""
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


def failure_text(error: Exception) -> str:
    """Return the reason why there are no keys: one line of bounded length, without secrets."""
    process = _process_of(error)
    if process is not None:
        return _process_failure(process, error)
    name = type(error).__name__
    if not _may_be_shown(error):
        return f"{name}; its text is not shown, because it may contain secrets"
    text = hide_userinfo_in_sentence(str(error))
    return f"{text[:_LONGEST_REASON]} ({name})"


def _may_be_shown(error: Exception) -> bool:
    """Return whether the text of an error is known to contain no secrets."""
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - as above

    if isinstance(error, BotoCoreError):
        provider = error.kwargs.get("provider")
        return type(error).__name__ not in _QUOTING_ERRORS and provider != _PROCESS_PROVIDER
    # LookupError is our own; its subclasses, such as KeyError, may quote a response.
    return isinstance(error, (ClientError, OSError)) or type(error) is LookupError


def _process_of(error: Exception) -> subprocess.Popen[bytes] | None:
    """Return the ``credential_process`` that caused an error, or None.

    botocore's error contains only the output of the process. The frames of its traceback contain
    the process.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            if isinstance(value, subprocess.Popen):
                return value
    return None


def _process_failure(process: subprocess.Popen[bytes], error: Exception) -> str:
    """Return how a process ended, with its program's name and its exit status only."""
    name = f"credential_process {_program(process)}"
    if isinstance(error, OSError):
        return f"{name} could not be run: {error.strerror}"
    if process.returncode != 0:
        return f"{name} ended with exit status {process.returncode}"
    return f"{name} printed no valid credentials ({type(error).__name__})"


def _program(process: subprocess.Popen[bytes]) -> str:
    """Return the program's name; its arguments may be secrets, also where a quote is missing."""
    arguments = process.args
    first = arguments[0] if isinstance(arguments, (list, tuple)) and arguments else arguments
    parts = str(first).split()
    return Path(parts[0]).name[:_LONGEST_NAME] if parts else "without a name"
