"""Run a ``credential_process``, and leave no process behind.

botocore waits for such a process without a limit: one that waits for a password or for a network
would hold the thread for ever, and would be left over when the daemon ends. So each runs in a
process group of its own, which is killed after a time and when the store closes. A process that
ends by itself keeps the processes that it has started: they may be agents that serve the next call.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from payloadd.errors import PayloaddError

if TYPE_CHECKING:
    from botocore.session import Session

PROCESS_SECONDS: Final = 60.0
"""The longest time a process may take; botocore's own documents name no limit."""


class MfaRequiredError(PayloaddError):
    """A profile wants the code of an MFA device, which a daemon cannot enter."""


class ProcessGroups:
    """The processes of one credential chain that are running."""

    def __init__(self, seconds: float = PROCESS_SECONDS) -> None:
        self._seconds = seconds
        self._running: set[subprocess.Popen[bytes]] = set()
        self._closed = False
        self._lock = threading.Lock()

    def start(self, arguments: list[str], **options: Any) -> subprocess.Popen[bytes]:  # noqa: ANN401 - as of Popen
        """Start a process; takes the arguments of Popen.

        Its ``communicate`` raises subprocess.TimeoutExpired after the longest time.
        """
        groups = self

        class Process(subprocess.Popen[bytes]):
            def communicate(
                self,
                input: Any = None,  # noqa: A002, ANN401 - as of Popen
                timeout: float | None = None,
            ) -> tuple[Any, Any]:
                try:
                    return super().communicate(input, timeout or groups._seconds)
                finally:
                    groups._end(self)

        with self._lock:
            if self._closed:
                raise OSError("the store is closed")
            process = Process(
                arguments, stdin=subprocess.DEVNULL, start_new_session=True, **options
            )
            self._running.add(process)
        return process

    def close(self) -> None:
        """Kill the processes that are running, and start no more."""
        with self._lock:
            self._closed = True
            for process in self._running:
                _kill_group(process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a process that has not ended, with its group."""
        with self._lock:
            if process.returncode is None:
                _kill_group(process)
                process.wait()
            self._running.discard(process)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # Its id is not used again before wait() has been called.
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def guard(session: Session, groups: ProcessGroups) -> None:
    """Make the credential chain of ``session`` start its processes in ``groups``.

    The chain then raises MfaRequiredError in place of asking for a code on the terminal.
    """
    from botocore.credentials import ProcessProvider  # noqa: PLC0415 - see aws_config

    def process_provider(profile_name: str) -> Any:  # noqa: ANN401 - botocore has no types
        return ProcessProvider(profile_name, lambda: session.full_config, popen=groups.start)

    def refuse(prompt: str) -> str:
        raise MfaRequiredError(MFA_REFUSED.format(where=prompt.removeprefix("Enter ").strip(" :")))

    for provider in session.get_component("credential_provider").providers:
        # Its attributes are private; the tests of this module fail if they are renamed.
        if isinstance(provider, ProcessProvider):
            provider._popen = groups.start  # noqa: SLF001
        builder = getattr(provider, "_profile_provider_builder", None)
        if builder is not None:
            builder._create_process_provider = process_provider  # noqa: SLF001
            provider._prompter = refuse  # noqa: SLF001


MFA_REFUSED: Final = (
    "{where}: a daemon cannot enter the code of an MFA device; allowed is a role that needs none,"
    " or temporary keys of another source (credential_process, SSO)"
)


def mfa_profile(session: Session) -> str | None:
    """Return the name of the profile whose role wants an MFA code, None if there is none.

    The profile in use and its source profiles are examined. Blocks: it reads files.
    """
    profiles = session.full_config.get("profiles", {})
    name = session.get_config_variable("profile") or "default"
    seen: set[str] = set()
    while _assumes_role(profile := profiles.get(name, {}), first=not seen) and name not in seen:
        if "mfa_serial" in profile:
            return str(name)
        seen.add(name)
        name = profile.get("source_profile")
    return None


def _assumes_role(profile: dict[str, Any], *, first: bool) -> bool:
    """Return whether botocore assumes the role of a profile (its class AssumeRoleProvider)."""
    return (
        "role_arn" in profile
        and "web_identity_token_file" not in profile
        and (first or not {"aws_access_key_id", "aws_secret_access_key"} & profile.keys())
    )
