"""Lock file of a journal: one process at a time may open it.

The lock is flock(2): the kernel releases it when the process ends, in whichever way.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from payloadd.errors import StartError
from payloadd.files import make_folder

if TYPE_CHECKING:
    from pathlib import Path

_FILE: Final = "journal.lock"
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_TRIES: Final = 10
_SECONDS_BETWEEN_TRIES: Final = 0.05
"""Retried because ``owner`` in another process holds a shared lock for a moment."""


def lock(folder: Path) -> int:
    """Lock the journal in ``folder`` and return the open lock file; closing it releases the lock.

    Creates the folder if it does not exist. Raises StartError, with the id of the process that
    holds the lock if there is one.
    """
    try:
        make_folder(folder, 0o700)
        file = os.open(folder / _FILE, _FLAGS, 0o600)
    except OSError as error:
        raise _cannot_use(folder, error) from None
    for _ in range(_TRIES):
        if _try_flock(file, fcntl.LOCK_EX):
            # The process id only improves the error message of another process: on a full disk
            # it is left out.
            with suppress(OSError):
                os.ftruncate(file, 0)
                os.pwrite(file, str(os.getpid()).encode(), 0)
            return file
        time.sleep(_SECONDS_BETWEEN_TRIES)
    process = _read_process(file)
    os.close(file)
    raise StartError(
        f"STATE_DIR {folder} is in use by another payloadd (process {process or 'unknown'});"
        " each process needs a STATE_DIR of its own"
    )


def owner(folder: Path) -> int | None:
    """Return the id of the process that has the journal in ``folder`` open, None if none has.

    Raises StartError where the lock file cannot be read.
    """
    try:
        file = os.open(folder / _FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _cannot_use(folder, error) from None
    try:
        return None if _try_flock(file, fcntl.LOCK_SH) else _read_process(file)
    finally:
        os.close(file)


def try_lock(folder: Path) -> int | None:
    """Return the id of the process that has the journal open, None if ``lock`` would succeed.

    Creates no file. Raises StartError.
    """
    process = owner(folder)
    if process is None and (folder / _FILE).exists():
        # Released at once: a daemon that starts meanwhile tries for only half a second.
        os.close(lock(folder))
    return process


def _cannot_use(folder: Path, error: OSError) -> StartError:
    if error.errno == errno.ELOOP:
        return StartError(
            f"{folder / _FILE} is a symbolic link; the journal does not follow symbolic links"
        )
    return StartError(f"cannot use STATE_DIR {folder}: {error}")


def _try_flock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_process(file: int) -> int | None:
    text = os.pread(file, 20, 0).decode(errors="replace").strip()
    return int(text) if text.isdigit() else None
