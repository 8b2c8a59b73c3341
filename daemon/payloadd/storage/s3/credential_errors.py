"""The reason why there are no keys, in one line without secrets.

Errors of botocore's chain may contain secrets: the standard error of a ``credential_process``, the
response of a metadata service, an endpoint's URL with a password. Only the texts of errors that are
known to contain names and reasons are shown; of all other errors, the class.
"""

from __future__ import annotations

import subprocess
import traceback
from pathlib import Path
from typing import Final

from payloadd.redaction import hide_userinfo_in_sentence
from payloadd.storage.s3.credential_process import MfaRequiredError

_LONGEST_REASON: Final = 300
_LONGEST_NAME: Final = 64
_QUOTING_ERRORS: Final = frozenset(
    {"MetadataRetrievalError", "HTTPClientError", "InvalidProxiesConfigError"}
)
"""Errors of botocore that quote a response or a part of a URL."""
_PROCESS_PROVIDER: Final = "custom-process"


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
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - see aws_config

    if isinstance(error, BotoCoreError):
        provider = error.kwargs.get("provider")
        return type(error).__name__ not in _QUOTING_ERRORS and provider != _PROCESS_PROVIDER
    # LookupError is our own; its subclasses, such as KeyError, may quote a response.
    return isinstance(error, (ClientError, OSError)) or type(error) in {
        LookupError,
        MfaRequiredError,
    }


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
    if isinstance(error, subprocess.TimeoutExpired):
        return f"{name} did not end within {error.timeout:g} s and was killed"
    if process.returncode != 0:
        return f"{name} ended with exit status {process.returncode}"
    return f"{name} printed no valid credentials ({type(error).__name__})"


def _program(process: subprocess.Popen[bytes]) -> str:
    """Return the program's name; its arguments may be secrets, also where a quote is missing."""
    arguments = process.args
    first = arguments[0] if isinstance(arguments, (list, tuple)) and arguments else arguments
    parts = str(first).split()
    return Path(parts[0]).name[:_LONGEST_NAME] if parts else "without a name"
