"""Keeps every other process out of a journal.

The kernel forgets the lock with the process that holds it, however that dies.
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
_PAUSE: Final = 0.05
"""Seconds between two tries: whoever asks for the owner holds the lock for a moment."""


def lock(folder: Path) -> int:
    """Lock the journal in ``folder``, which is made if need be, until the returned file closes.

    Raises StartError that names the process which has it.
    """
    try:
        make_folder(folder, 0o700)
        file = os.open(folder / _FILE, _FLAGS, 0o600)
    except OSError as error:
        raise _cannot_use(folder, error) from None
    for _ in range(_TRIES):
        if _take(file, fcntl.LOCK_EX):
            # No more than a help for whoever is refused: on a full disk it is left out.
            with suppress(OSError):
                os.ftruncate(file, 0)
                os.pwrite(file, str(os.getpid()).encode(), 0)
            return file
        time.sleep(_PAUSE)
    process = _read(file)
    os.close(file)
    raise StartError(
        f"STATE_DIR {folder} is in use by another payloadd (process {process or 'unknown'});"
        " each process needs one of its own"
    )


def owner(folder: Path) -> int | None:
    """Return the process that has the journal in ``folder`` open, None if there is none.

    Raises StartError where that cannot be read.
    """
    try:
        file = os.open(folder / _FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _cannot_use(folder, error) from None
    try:
        return None if _take(file, fcntl.LOCK_SH) else _read(file)
    finally:
        os.close(file)


def try_lock(folder: Path) -> int | None:
    """Return the process that has the journal, None if there is none and ``lock`` would do.

    Makes no file. Raises StartError.
    """
    process = owner(folder)
    if process is None and (folder / _FILE).exists():
        # Not for longer: a daemon that starts meanwhile waits for half a second only.
        os.close(lock(folder))
    return process


def _cannot_use(folder: Path, error: OSError) -> StartError:
    if error.errno == errno.ELOOP:
        return StartError(f"{folder / _FILE} is a symbolic link; the journal follows none")
    return StartError(f"cannot use STATE_DIR {folder}: {error}")


def _take(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(file: int) -> int | None:
    text = os.pread(file, 20, 0).decode(errors="replace").strip()
    return int(text) if text.isdigit() else None
