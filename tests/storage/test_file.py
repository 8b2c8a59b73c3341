"""The file store: what is on the disk, with which rights, and after which errors."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payloadd.config.settings import load
from payloadd.errors import (
    InvalidObjectError,
    OperatorStoreError,
    StartError,
    StoreError,
    TransientStoreError,
)
from payloadd.storage.api import open_store
from payloadd.storage.file import FileStore, _store_error, open_file_store
from tests.support.objects import MEMBERS, gzipped, plain

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
async def store(tmp_path: Path) -> FileStore:
    """Return a store in a new folder."""
    return await open_file_store(tmp_path / "objects")


def files(root: Path) -> dict[str, bytes]:
    """Return all files below a folder."""
    found = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


async def test_objects_are_files_in_a_folder_that_is_created(tmp_path: Path) -> None:
    """The default store would store nothing."""
    root = tmp_path / "not" / "there yet"
    async with open_store(load({"STORE_URL": f"file://{root}"})) as store:
        await store.put("2026/01/a.ndjson", plain(b"{}\n"), MEMBERS, repeat=False)
        await store.put("2026/01/b ü.ndjson.gz", gzipped(b"\x1f\x8b"), MEMBERS, repeat=False)

    assert files(root) == {"2026/01/a.ndjson": b"{}\n", "2026/01/b ü.ndjson.gz": b"\x1f\x8b"}


async def test_bytes_are_synced_before_the_rename_and_the_folder_after_it(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A confirmed object would be empty or missing after a power cut."""
    events: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append(f"sync {name.relative_to(tmp_path)}")
        real_sync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        events.append(f"rename {self.name}")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    await store.put("a/b/c", plain(b"x"), MEMBERS, repeat=False)
    await store.put("a/b/d", plain(b"x"), MEMBERS, repeat=False)

    assert events == [
        "sync objects",  # the name a
        "sync objects/a",  # the name b
        "sync objects/a/b/.c.tmp",
        "rename .c.tmp",
        "sync objects/a/b",
        "sync objects/a/b/.d.tmp",
        "rename .d.tmp",
        "sync objects/a/b",
    ]


async def test_the_identity_is_the_user_of_the_process(store: FileStore) -> None:
    """`payloadd check` would not show the user whose rights count."""
    assert str(os.geteuid()) in await store.identify()


async def test_a_file_left_by_a_crash_is_replaced(store: FileStore, tmp_path: Path) -> None:
    """Half-written temporary files would accumulate after crashes."""
    (tmp_path / "objects" / ".a.tmp").write_bytes(b"half of something much longer")

    await store.put("a", plain(b"whole"), MEMBERS, repeat=False)

    assert files(tmp_path / "objects") == {"a": b"whole"}


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Set the process's umask for the time of the block."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """Return the permissions of all files and folders below a folder."""
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode)
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize(
    ("mask", "folder_mode", "file_mode"),
    [(0o000, 0o750, 0o640), (0o027, 0o750, 0o640), (0o022, 0o750, 0o640), (0o077, 0o700, 0o600)],
)
async def test_the_group_may_read_objects_as_far_as_the_umask_allows(
    tmp_path: Path, mask: int, folder_mode: int, file_mode: int
) -> None:
    """All users could read payloads, or no program of the group could."""
    with umask(mask):
        store = await open_file_store(tmp_path / "made" / "objects")
        await store.put("day/a", plain(b"x"), MEMBERS, repeat=False)
    assert modes(tmp_path) == {
        "made": folder_mode,
        "made/objects": folder_mode,
        "made/objects/day": folder_mode,
        "made/objects/day/a": file_mode,
    }


async def test_permissions_of_a_file_left_by_a_crash_are_not_kept(
    store: FileStore, tmp_path: Path
) -> None:
    """All users could read an object because a file of an earlier version had such rights."""
    left = tmp_path / "objects" / ".a.tmp"
    left.write_bytes(b"half")
    left.chmod(0o666)
    with umask(0):
        await store.put("a", plain(b"whole"), MEMBERS, repeat=False)
    assert modes(tmp_path / "objects") == {"a": 0o640}


@pytest.mark.parametrize("kind", ["symlink", "dangling symlink", "hard link", "pipe"])
async def test_a_link_in_place_of_the_temporary_file_is_not_followed(
    store: FileStore, tmp_path: Path, kind: str
) -> None:
    """A user with write access to the folder could have any file of the daemon overwritten."""
    victim = tmp_path / "victim"
    temporary = tmp_path / "objects" / ".a.tmp"
    match kind:
        case "symlink":
            victim.write_bytes(b"precious")
            temporary.symlink_to(victim)
        case "dangling symlink":
            temporary.symlink_to(victim)
        case "hard link":
            victim.write_bytes(b"precious")
            temporary.hardlink_to(victim)
        case _:
            os.mkfifo(temporary)  # opening it for writing would wait for a reader
    await store.put("a", plain(b"x"), MEMBERS, repeat=False)
    assert files(tmp_path / "objects") == {"a": b"x"}
    assert not (tmp_path / "objects" / "a").is_symlink()
    assert not victim.exists() or victim.read_bytes() == b"precious"


async def test_a_folder_in_place_of_the_temporary_file_is_an_operator_error(
    store: FileStore, tmp_path: Path
) -> None:
    """An object would be dropped because of a folder that an operator can move away."""
    (tmp_path / "objects" / ".a.tmp").mkdir()
    with pytest.raises(OperatorStoreError, match=r"EISDIR|EPERM"):
        await store.put("a", plain(b"x"), MEMBERS, repeat=False)


async def test_a_link_that_another_process_creates_again_is_not_followed(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link created between the removal and the open would be followed."""
    victim = tmp_path / "victim"
    temporary = tmp_path / "objects" / ".a.tmp"
    temporary.symlink_to(victim)
    unlink = Path.unlink

    def unlink_and_plant(path: Path, *, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=missing_ok)
        temporary.symlink_to(victim)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink_and_plant)
        with pytest.raises(OperatorStoreError, match="EEXIST"):
            await store.put("a", plain(b"x"), MEMBERS, repeat=False)
    assert not victim.exists()


@pytest.mark.parametrize(
    "key", ["../a", "/a", "a/", "a//b", "a/./b", "a/../../b", "", "a\0b", "a\udcffb", "n" * 300]
)
async def test_a_key_that_is_no_file_name_is_invalid(
    store: FileStore, tmp_path: Path, key: str
) -> None:
    """A key could name a file outside the folder, or be tried for ever."""
    with pytest.raises(InvalidObjectError):
        await store.put(key, plain(b"x"), MEMBERS, repeat=False)
    assert files(tmp_path) == {}


@given(st.text(max_size=20))
async def test_no_key_names_a_file_outside_the_folder(
    tmp_path_factory: pytest.TempPathFactory, key: str
) -> None:
    """A key could overwrite a file of the system."""
    base = tmp_path_factory.mktemp("keys")
    store = await open_file_store(base / "root")
    try:
        await store.put(key, plain(b"x"), MEMBERS, repeat=False)
    except StoreError:
        assert files(base) == {}
    else:
        assert files(base) == {f"root/{key}": b"x"}


async def test_a_full_disk_is_an_operator_error_and_its_bytes_are_freed(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Payloads would be lost when the disk is full, and half-written files would fill it."""

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OperatorStoreError, match="ENOSPC: No space left"):
            await store.put("a", plain(b"x"), MEMBERS, repeat=False)
    assert files(tmp_path / "objects") == {}

    await store.put("a", plain(b"x"), MEMBERS, repeat=False)
    assert files(tmp_path / "objects") == {"a": b"x"}


async def test_a_removed_folder_is_created_again(store: FileStore, tmp_path: Path) -> None:
    """A job that removes empty folders would stop uploads."""
    await store.put("day/a", plain(b"x"), MEMBERS, repeat=False)
    (tmp_path / "objects/day/a").unlink()
    (tmp_path / "objects/day").rmdir()

    with pytest.raises(TransientStoreError, match="ENOENT"):
        await store.put("day/b", plain(b"x"), MEMBERS, repeat=False)
    await store.put("day/b", plain(b"x"), MEMBERS, repeat=False)

    assert files(tmp_path / "objects") == {"day/b": b"x"}


async def test_a_removed_root_is_not_created_again(store: FileStore, tmp_path: Path) -> None:
    """Objects would be written to another disk after the right one is unmounted."""
    (tmp_path / "objects").rmdir()

    with pytest.raises(OperatorStoreError, match="ENODEV"):
        await store.put("day/b", plain(b"x"), MEMBERS, repeat=False)


async def test_a_file_in_place_of_a_folder_is_an_operator_error(store: FileStore) -> None:
    """Objects would be dropped because of a file that an operator can move away."""
    await store.put("a", plain(b"x"), MEMBERS, repeat=False)

    with pytest.raises(OperatorStoreError, match="EEXIST"):
        await store.put("a/b", plain(b"x"), MEMBERS, repeat=False)


async def test_the_number_of_remembered_folders_is_bounded(tmp_path: Path) -> None:
    """The process would grow with every folder that it writes to."""
    (tmp_path / "objects").mkdir()
    store = FileStore(tmp_path / "objects", most_folders=3)
    for index in range(10):
        await store.put(f"{index}/x", plain(b"x"), MEMBERS, repeat=False)

    assert len(store._synced) <= 3
    assert len(files(tmp_path / "objects")) == 10


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EACCES, OperatorStoreError),
        (errno.EPERM, OperatorStoreError),
        (errno.EROFS, OperatorStoreError),
        (errno.EDQUOT, OperatorStoreError),
        (errno.ENOSPC, OperatorStoreError),
        (errno.EIO, OperatorStoreError),
        (errno.ENOTDIR, OperatorStoreError),
        (errno.EINTR, TransientStoreError),
        (errno.EMFILE, TransientStoreError),
        (errno.ESTALE, TransientStoreError),
        (errno.ENAMETOOLONG, InvalidObjectError),
        (errno.EILSEQ, InvalidObjectError),
    ],
)
def test_errors_of_the_file_system_have_their_class(number: int, kind: type[StoreError]) -> None:
    """A payload that can be saved would be dropped, or one that cannot would be tried for ever."""
    error = _store_error(OSError(number, os.strerror(number), "x"))

    assert type(error) is kind
    assert error.code == errno.errorcode[number]


def test_an_error_without_errno_is_an_operator_error() -> None:
    """An unusual error of a file system would stop the pipeline."""
    error = _store_error(OSError("odd"))

    assert isinstance(error, OperatorStoreError)
    assert str(error) == "EIO: odd: object"


async def test_a_root_that_cannot_be_created_stops_the_start(tmp_path: Path) -> None:
    """The daemon would start and accept payloads that it cannot store."""
    (tmp_path / "file").write_text("")

    with pytest.raises(StartError, match="STORE_URL: cannot make or use"):
        async with open_store(load({"STORE_URL": f"file://{tmp_path}/file/objects"})):
            raise AssertionError
