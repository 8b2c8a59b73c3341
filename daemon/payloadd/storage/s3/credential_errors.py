"""Say why botocore's credential chain failed, without what it may repeat of secrets.

Errors of the chain hold what others wrote: a ``credential_process`` to its standard error, a
metadata service into its answer, an administrator into an endpoint's URL. Only the text of
errors that are known to hold names and reasons is shown; of all others, their class.
"""

from __future__ import annotations

import subprocess
import traceback
from pathlib import Path
from typing import Final

from payloadd.redaction import hide_userinfo_in_sentence

_LONGEST_REASON: Final = 300
_LONGEST_NAME: Final = 64
# Their texts repeat an answer, or an error of a parser of URLs that repeats a piece of one.
_REPEATING: Final = frozenset(
    {"MetadataRetrievalError", "HTTPClientError", "InvalidProxiesConfigError"}
)
_PROCESS_PROVIDER: Final = "custom-process"


def failure_text(error: Exception) -> str:
    """Return why there are no keys, in one bounded line for the log and ``/readyz``."""
    process = _process_of(error)
    if process is not None:
        return _process_failure(process, error)
    name = type(error).__name__
    if not _may_be_shown(error):
        return f"{name}; its text is not shown, because it may hold secrets"
    text = hide_userinfo_in_sentence(str(error))
    return f"{text[:_LONGEST_REASON]} ({name})"


def _may_be_shown(error: Exception) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - takes 0.5 s

    if isinstance(error, BotoCoreError):
        provider = error.kwargs.get("provider")
        return type(error).__name__ not in _REPEATING and provider != _PROCESS_PROVIDER
    # LookupError is our own; a subclass of it names what was in an answer.
    return isinstance(error, (ClientError, OSError)) or type(error) is LookupError


def _process_of(error: Exception) -> subprocess.Popen[bytes] | None:
    """Return the ``credential_process`` that an error came of.

    botocore's error has only what the process wrote, but its frames have the process.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            if isinstance(value, subprocess.Popen):
                return value
    return None


def _process_failure(process: subprocess.Popen[bytes], error: Exception) -> str:
    """Tell how a process ended by its program's name and status alone."""
    name = f"credential_process {_program(process)}"
    if isinstance(error, OSError):
        return f"{name} could not be run: {error.strerror}"
    if process.returncode != 0:
        return f"{name} ended with exit status {process.returncode}"
    return f"{name} printed something else than credentials ({type(error).__name__})"


def _program(process: subprocess.Popen[bytes]) -> str:
    """Return the program's name; its arguments may be secrets, also where they are quoted wrong."""
    arguments = process.args
    first = arguments[0] if isinstance(arguments, (list, tuple)) and arguments else arguments
    words = str(first).split()
    return Path(words[0]).name[:_LONGEST_NAME] if words else "without a name"
