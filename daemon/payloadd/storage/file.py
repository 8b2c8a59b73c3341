"""A store in a folder: the default, and for any mounted file system.

A file gets its final name only after all of its bytes are on the disk: it is written under a
temporary name, synced and renamed, and its folder is synced (rename(2), fsync(2)). The temporary
name depends on the final name alone, so the next attempt after a crash removes the file that the
attempt before has left.

The group may read objects and list folders, as far as the umask allows. A temporary file is always
a new file: a link that another process has put in its place is removed, never followed or written
through.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from payloadd.config.reasons import is_unicode
from payloadd.errors import (
    InvalidObjectError,
    OperatorStoreError,
    StartError,
    StoreError,
    TransientStoreError,
)
from payloadd.files import make_folder, sync_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from payloadd.model.formats.api import EncodedObject
    from payloadd.model.job import Members

_THREADS: Final = 16
"""Files that are written at the same time; more threads would wait for the same disk."""
_FILE_MODE: Final = 0o640
_FOLDER_MODE: Final = 0o750
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_FOLDERS: Final = 10_000
"""Folders that are remembered as synced; one folder an hour for a year fits."""

T = TypeVar("T")

_INVALID: Final = {errno.ENAMETOOLONG, errno.EILSEQ}
_TRANSIENT: Final = {
    errno.EINTR,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.ETIMEDOUT,
    errno.ENOENT,  # another process removed a folder: the next attempt creates it again
}


class FileStore:
    """A store in the folder ``root``; see :class:`~payloadd.storage.api.Store`.

    A cancelled ``put`` finishes its file first: if the thread were abandoned, the next ``put`` of
    the key could write the same temporary file at the same time.
    """

    def __init__(self, root: Path, *, most_folders: int = _MOST_FOLDERS) -> None:
        """``most_folders`` bounds the folders that are remembered as synced."""
        self._root = root
        self._most_folders = most_folders
        self._limiter = trio.CapacityLimiter(_THREADS)
        # Shared by all threads without a lock: a folder that is added late is synced twice.
        self._synced = {root}

    async def put(self, key: str, body: EncodedObject, members: Members, *, repeat: bool) -> None:
        """Write one file; a file with the same name is replaced. Raises StoreError."""
        del members, repeat
        path = self._path(key)
        await self._in_thread(lambda: self._write(path, body.pieces))

    async def replace(self, key: str, body: EncodedObject) -> None:
        """Write one file; a file with the same name is replaced. Raises StoreError."""
        path = self._path(key)
        await self._in_thread(lambda: self._write(path, body.pieces))

    async def delete(self, key: str) -> None:
        """Delete one file; a missing file is no error. Raises StoreError."""
        path = self._path(key)
        await self._in_thread(lambda: path.unlink(missing_ok=True))

    async def read_back(self, key: str, body: EncodedObject, members: Members) -> bool:
        """Return True if the file has the size of the object. Raises StoreError otherwise."""
        del members
        path = self._path(key)
        size = await self._in_thread(lambda: path.stat().st_size)
        if size != body.size:
            raise OperatorStoreError("EIO", f"{path} has {size} bytes instead of {body.size}")
        return True

    async def create(self) -> bool:
        """Create the folder and its missing parents. Raises StoreError."""
        missing = not self._root.exists()
        await self._in_thread(lambda: _make_root(self._root))
        return missing

    def learnt(self) -> list[str]:
        """Return nothing: a folder corrects no settings."""
        return []

    async def identify(self) -> str:
        """Return the user of the process, whose rights the file system checks."""
        await trio.lowlevel.checkpoint()
        return f"none needed, files are written as user {os.geteuid()}"

    def credentials_expire(self) -> None:
        """Return None: files need no credentials."""

    async def reload(self) -> None:
        """Do nothing: files need no credentials."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Do nothing: no file is open between two calls."""
        await trio.lowlevel.checkpoint()

    def _path(self, key: str) -> Path:
        """Return the path of a key. Raises InvalidObjectError for a key that is no file name."""
        parts = key.split("/")
        if not {"", ".", ".."}.isdisjoint(parts) or "\0" in key or not is_unicode(key):
            raise InvalidObjectError("KeyOutsideRoot", f"not allowed as a file name: {key!r}")
        return self._root.joinpath(*parts)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await trio.to_thread.run_sync(work, limiter=self._limiter)
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
            self._synced = {self._root}
            with suppress(OSError):
                temporary.unlink()  # frees its bytes on a full disk
            if error.errno == errno.ENOENT and not self._root.is_dir():
                # Not created again: if a disk is no longer mounted, another disk would be filled.
                raise OSError(
                    errno.ENODEV, "the folder of STORE_URL is gone", self._root
                ) from error
            raise

    def _make(self, folder: Path) -> None:
        """Create a folder and its missing parents, and sync their names to the disk.

        A folder that exists may have been created by another thread that has not synced it yet.
        Therefore every folder is synced once, unless it is remembered as synced.
        """
        if folder in self._synced:
            return
        self._make(folder.parent)
        folder.mkdir(_FOLDER_MODE, exist_ok=True)
        sync_folder(folder.parent)
        if len(self._synced) >= self._most_folders:
            self._synced = {self._root}
        self._synced.add(folder)


def _create(temporary: Path) -> int:
    """Return the descriptor of a new file; a file left by a crash is removed first."""
    try:
        return os.open(temporary, _NEW_FILE, _FILE_MODE)
    except FileExistsError:
        temporary.unlink()
        return os.open(temporary, _NEW_FILE, _FILE_MODE)


async def open_file_store(root: Path) -> FileStore:
    """Return a store in ``root``, which is created if it is missing. Raises StartError."""
    try:
        return FileStore(await trio.to_thread.run_sync(_make_root, root))
    except OSError as error:
        raise StartError(f"STORE_URL: cannot make or use {root}: {error.strerror}") from error


def _make_root(root: Path) -> Path:
    """Create the folder and its missing parents, all synced, and return its absolute path."""
    root = root.absolute()
    make_folder(root, _FOLDER_MODE)
    sync_folder(root)
    return root


def _store_error(error: OSError) -> StoreError:
    code = errno.errorcode.get(error.errno or 0, "EIO")
    message = f"{error.strerror or error}: {error.filename or 'object'}"
    if error.errno in _INVALID:
        return InvalidObjectError(code, message)
    if error.errno in _TRANSIENT:
        return TransientStoreError(code, message)
    return OperatorStoreError(code, message)
