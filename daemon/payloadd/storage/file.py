"""Objects as files: the embedded default, and any mounted file system.

A file appears under its name only when all of it is on the disk: it is written under a
temporary name, synced, renamed, and the folder synced (rename(2), fsync(2)). The
temporary name follows from the final one, so that trying again after a crash takes the
same name and leaves nothing behind.

The group may read objects and list folders, as far as the umask lets it. A temporary file is
always a new one: a link that another process has put in its place is removed, never followed
or written through.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from payloadd.errors import (
    InvalidObjectError,
    OperatorStoreError,
    StartError,
    StoreError,
    TransientStoreError,
)
from payloadd.files import make_folder, sync_folder
from payloadd.model.keys import is_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from payloadd.model.formats.ndjson import Encoded

# More threads only wait for the same disk.
_THREADS: Final = 16
_FILE_MODE: Final = 0o640
_FOLDER_MODE: Final = 0o750
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# Folders known to be on the disk; a year of hourly ones fits.
_FOLDERS: Final = 10_000

_NEVER: Final = {errno.ENAMETOOLONG, errno.EILSEQ}
_SOON: Final = {
    errno.EINTR,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENOENT,  # somebody took a folder away: the next attempt makes it again
}


class FileStore:
    """A store in a folder; see :class:`~payloadd.storage.api.Store` for the contract.

    A cancelled ``put`` ends its file first: to abandon the thread would let two of them
    write one temporary file.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._limiter = trio.CapacityLimiter(_THREADS)
        # Read and written in several threads; a folder that is in it too late is synced twice.
        self._durable = {root}

    async def put(self, key: str, body: Encoded) -> None:
        """Write one file; raises StoreError."""
        path = self._path(key)
        await self._in_thread(lambda: self._write(path, body.pieces))

    async def delete(self, key: str) -> None:
        """Take one file away; that it is not there is no error."""
        path = self._path(key)
        await self._in_thread(lambda: path.unlink(missing_ok=True))

    async def identify(self) -> str:
        """Return the process's user: the file system goes by it."""
        await trio.lowlevel.checkpoint()
        return f"none needed, files are written as user {os.geteuid()}"

    async def aclose(self) -> None:
        """Nothing is held open."""
        await trio.lowlevel.checkpoint()

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if not {"", ".", ".."}.isdisjoint(parts) or "\0" in key or not is_text(key):
            raise InvalidObjectError("KeyOutsideRoot", f"no name for a file: {key!r}")
        return self._root.joinpath(*parts)

    async def _in_thread(self, work: Callable[[], None]) -> None:
        try:
            await trio.to_thread.run_sync(work, limiter=self._limiter)
        except OSError as error:
            raise _store_error(error) from error

    def _write(self, path: Path, pieces: Sequence[bytes]) -> None:
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            self._make(path.parent)
            with os.fdopen(_create(temporary), "wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            self._durable = {self._root}
            with suppress(OSError):
                temporary.unlink()  # on a full disk its bytes are wanted back
            if error.errno == errno.ENOENT and not self._root.is_dir():
                # Not made again: under a disk that is not mounted it would fill the wrong one.
                raise OSError(
                    errno.ENODEV, "the folder of STORE_URL is gone", self._root
                ) from error
            raise

    def _make(self, folder: Path) -> None:
        """Make a folder and those above it, and bring their names to the disk.

        A folder that another thread just made may not be on the disk yet, so whoever does
        not know better syncs.
        """
        if folder in self._durable:
            return
        self._make(folder.parent)
        folder.mkdir(_FOLDER_MODE, exist_ok=True)
        sync_folder(folder.parent)
        if len(self._durable) >= _FOLDERS:
            self._durable = {self._root}
        self._durable.add(folder)


def _create(temporary: Path) -> int:
    """Return a descriptor of a new file; what a crash left under its name is removed first."""
    try:
        return os.open(temporary, _NEW_FILE, _FILE_MODE)
    except FileExistsError:
        temporary.unlink()
        return os.open(temporary, _NEW_FILE, _FILE_MODE)


async def open_file_store(root: Path) -> FileStore:
    """Return a store in ``root``, which is made if it is not there; raises StartError."""
    try:
        return FileStore(await trio.to_thread.run_sync(_make_root, root))
    except OSError as error:
        raise StartError(f"STORE_URL: cannot make or use {root}: {error.strerror}") from error


def _make_root(root: Path) -> Path:
    """Make the folder with those above it, all synced; returns its absolute path."""
    root = root.absolute()
    make_folder(root, _FOLDER_MODE)
    sync_folder(root)
    return root


def _store_error(error: OSError) -> StoreError:
    code = errno.errorcode.get(error.errno or 0, "EIO")
    message = f"{error.strerror or error}: {error.filename or 'object'}"
    if error.errno in _NEVER:
        return InvalidObjectError(code, message)
    if error.errno in _SOON:
        return TransientStoreError(code, message)
    return OperatorStoreError(code, message)
