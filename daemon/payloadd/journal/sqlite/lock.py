"""Lock file of a journal: one process at a time may open it.

The lock is flock(2): the kernel releases it when the process ends, in whichever way. SQLite needs
the other kind of lock (fcntl(2)) too, and reports a file system without it only as "database is
locked", after a long wait. So both kinds are tried at a start.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from payloadd.errors import StartError, StateDirError
from payloadd.files import is_at, make_folder

if TYPE_CHECKING:
    from pathlib import Path

_FILE: Final = "journal.lock"
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_TRIES: Final = 10
_SECONDS_BETWEEN_TRIES: Final = 0.05
"""Retried because ``owner`` in another process holds a shared lock for a moment."""


class StateDirLock:
    """The lock of a STATE_DIR, held until ``close``."""

    def __init__(self, folder: Path) -> None:
        """Lock the journal in ``folder``. Raises StartError."""
        self._folder = folder
        self._file = lock(folder)

    @property
    def path(self) -> Path:
        """The path of the lock file."""
        return self._folder / _FILE

    def in_place(self) -> bool:
        """Return whether the lock file is still there: otherwise another process can lock too."""
        return is_at(self._file, self.path)

    def renew(self) -> None:
        """Lock the file that is at the path now, or a new one. Raises StartError."""
        file = lock(self._folder)
        os.close(self._file)
        self._file = file

    def close(self) -> None:
        """Release the lock."""
        os.close(self._file)


def lock(folder: Path, shown: Path | None = None) -> int:
    """Lock the journal in ``folder`` and return the open lock file; closing it releases the lock.

    Creates the folder if it does not exist. ``shown``: the folder that errors name, if it is
    another one. Raises StartError, with the id of the process that holds the lock if there is one,
    and StateDirError on a file system without locks.
    """
    try:
        make_folder(folder, 0o700)
        file = os.open(folder / _FILE, _FLAGS, 0o600)
    except OSError as error:
        raise _cannot_use(folder, error) from None
    try:
        _check_locks(file, shown or folder)
        locked = _flock_soon(file, shown or folder)
    except BaseException:
        os.close(file)
        raise
    if locked:
        return file
    process = _read_process(file)
    os.close(file)
    raise StartError(
        f"STATE_DIR {folder} is in use by another payloadd (process {process or 'unknown'});"
        " each process needs a STATE_DIR of its own"
    )


def _flock_soon(file: int, folder: Path) -> bool:
    """Lock a file and write the process id into it; return False if another process keeps it."""
    for _ in range(_TRIES):
        if _try_flock(file, fcntl.LOCK_EX, folder):
            # The process id only improves the error message of another process: on a full disk
            # it is left out.
            with suppress(OSError):
                os.ftruncate(file, 0)
                os.pwrite(file, str(os.getpid()).encode(), 0)
            return True
        time.sleep(_SECONDS_BETWEEN_TRIES)
    return False


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
        return None if _try_flock(file, fcntl.LOCK_SH, folder) else _read_process(file)
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


def _try_flock(file: int, kind: int, folder: Path) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _without_locks(folder, "flock", error) from None
    return True


def _check_locks(file: int, folder: Path) -> None:
    """Raise StateDirError where SQLite cannot lock its file."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(file, fcntl.LOCK_UN)
    except OSError as error:
        # Another process has a lock, so there are locks; SQLite ignores the two codes likewise.
        if error.errno not in {errno.EAGAIN, errno.EACCES}:
            raise _without_locks(folder, "fcntl", error) from None


def _without_locks(folder: Path, kind: str, error: OSError) -> StateDirError:
    return StateDirError(
        f"STATE_DIR {folder} is on a file system that does not support file locks ({kind}:"
        f" {error.strerror}); the journal needs a local file system, or NFS with its lock service"
    )


def _read_process(file: int) -> int | None:
    text = os.pread(file, 20, 0).decode(errors="replace").strip()
    return int(text) if text.isdigit() else None
