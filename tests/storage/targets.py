"""The places that the suite of all stores writes to, as its tests read, remove and break them."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import pytest

from payloadd.config.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from payloadd.config.settings import Settings
    from tests.support.s3 import S3Server

TEST_TIMEOUT: Final = 60.0


@dataclass
class Unconfirmed:
    """A store that confirms nothing from ``hold`` until ``release``."""

    settings: Settings
    hold: Callable[[], object]
    release: Callable[[], object]
    """Let uploads that cannot be interrupted end."""


class Target(Protocol):
    """A place that a store can write to; a test can read it, remove it and break it."""

    settings: Settings
    """The settings that name the place."""
    secrets: tuple[str, ...]
    """Texts that no message may contain."""

    def objects(self) -> dict[str, bytes]:
        """Return every object in the place: key to bytes."""
        ...

    def remove(self) -> None:
        """Remove the place with all objects, as an operator may do by mistake."""
        ...

    def restore(self) -> None:
        """Create the place again."""
        ...

    def without_confirmation(self) -> AbstractContextManager[Unconfirmed]:
        """Return a store that does not confirm uploads; valid within the block."""
        ...

    def broken_for_a_moment(self) -> AbstractContextManager[Settings]:
        """Return settings for the same kind of store; uploads fail within the block."""
        ...


class Folder:
    """A folder, for the file store."""

    secrets: tuple[str, ...] = ()

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir()
        self.settings = load({"STORE_URL": f"file://{root}"})

    def objects(self) -> dict[str, bytes]:
        """Return every file, temporary ones included."""
        found = {}
        for path in self._root.rglob("*"):
            with suppress(FileNotFoundError, IsADirectoryError):  # a file may be renamed meanwhile
                found[str(path.relative_to(self._root))] = path.read_bytes()
        return found

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._root)

    def restore(self) -> None:
        """Create the folder."""
        self._root.mkdir()

    @contextmanager
    def without_confirmation(self) -> Iterator[Unconfirmed]:
        """Let no sync end."""
        released = threading.Event()
        released.set()
        sync = os.fsync

        def wait(file: int) -> None:
            assert released.wait(TEST_TIMEOUT)
            sync(file)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", wait)
            yield Unconfirmed(self.settings, released.clear, released.set)
            released.set()

    @contextmanager
    def broken_for_a_moment(self) -> Iterator[Settings]:
        """Let no file be opened: the process has too many open files."""
        with pytest.MonkeyPatch.context() as patch:
            error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            patch.setattr("payloadd.storage.file._create", _raiser(error))
            yield self.settings


def _raiser(error: Exception) -> Callable[[object], None]:
    def fail(_argument: object) -> None:
        raise error

    return fail


class Bucket:
    """A bucket of an S3 server that checks signatures."""

    def __init__(self, server: S3Server, name: str, make_settings: Callable[..., Settings]) -> None:
        self._server = server
        self._name = server.make_bucket(name)
        self._make_settings = make_settings
        self.settings = self._make(server.endpoint)
        self.secrets = (server.secret_key,)

    def _make(self, endpoint: str) -> Settings:
        environ = {**self._server.environ, "AWS_ENDPOINT_URL_S3": endpoint}
        return self._make_settings(STORE_URL=f"s3://{self._name}", MAX_WORKERS="32", **environ)

    def objects(self) -> dict[str, bytes]:
        """Return every object of the bucket."""
        return self._server.objects(self._name)

    def remove(self) -> None:
        """Delete the bucket."""
        self._server.drop_bucket(self._name)

    def restore(self) -> None:
        """Create the bucket."""
        self._server.make_bucket(self._name)

    @contextmanager
    def without_confirmation(self) -> Iterator[Unconfirmed]:
        """Name an endpoint that takes connections and never answers."""
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
            yield Unconfirmed(self._make(endpoint), lambda: None, lambda: None)

    @contextmanager
    def broken_for_a_moment(self) -> Iterator[Settings]:
        """Name an endpoint where no server listens."""
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            yield self._make(f"http://127.0.0.1:{unused.getsockname()[1]}")
