"""Objects as files."""

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
from payloadd.model.formats.ndjson import Encoded, encode
from payloadd.storage.api import open_store
from payloadd.storage.file import FileStore, _store_error, open_file_store

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
async def store(tmp_path: Path) -> FileStore:
    """Return a store in a new folder."""
    return await open_file_store(tmp_path / "objects")


def plain(data: bytes) -> Encoded:
    """Return an object that is not compressed."""
    return encode([data], "none")


def files(root: Path) -> dict[str, bytes]:
    """Return all files below a folder."""
    found = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


async def test_objects_become_files(tmp_path: Path) -> None:
    """The embedded default would not store anything."""
    root = tmp_path / "not" / "there yet"
    async with open_store(load({"STORE_URL": f"file://{root}"})) as store:
        await store.put("2026/01/a.ndjson", plain(b"{}\n"))
        await store.put("2026/01/b ü.ndjson.gz", Encoded([b"\x1f\x8b"], "gzip"))
        await store.put("2026/01/a.ndjson", plain(b"[]\n"))

    assert files(root) == {"2026/01/a.ndjson": b"[]\n", "2026/01/b ü.ndjson.gz": b"\x1f\x8b"}


async def test_an_object_is_on_the_disk_before_its_name(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut an object that was confirmed would be empty or gone."""
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
    await store.put("a/b/c", plain(b"x"))
    await store.put("a/b/d", plain(b"x"))

    assert events == [
        "sync objects",  # a is there
        "sync objects/a",  # b is there
        "sync objects/a/b/.c.tmp",
        "rename .c.tmp",
        "sync objects/a/b",
        "sync objects/a/b/.d.tmp",
        "rename .d.tmp",
        "sync objects/a/b",
    ]


async def test_who_it_is(store: FileStore) -> None:
    """`payloadd check` would not say whose rights count."""
    assert str(os.geteuid()) in await store.identify()


async def test_what_a_crash_left_is_taken_up(store: FileStore, tmp_path: Path) -> None:
    """Half-written temporary files would pile up after crashes."""
    (tmp_path / "objects" / ".a.tmp").write_bytes(b"half of something much longer")

    await store.put("a", plain(b"whole"))

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
    """Return the permissions of all that is below a folder."""
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode)
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize(
    ("mask", "folder_mode", "file_mode"),
    [(0o000, 0o750, 0o640), (0o027, 0o750, 0o640), (0o022, 0o750, 0o640), (0o077, 0o700, 0o600)],
)
async def test_the_group_may_read_objects_as_far_as_the_umask_lets_it(
    tmp_path: Path, mask: int, folder_mode: int, file_mode: int
) -> None:
    """Payloads would be readable by all, or by no program that works on them."""
    with umask(mask):
        store = await open_file_store(tmp_path / "made" / "objects")
        await store.put("day/a", plain(b"x"))
    assert modes(tmp_path) == {
        "made": folder_mode,
        "made/objects": folder_mode,
        "made/objects/day": folder_mode,
        "made/objects/day/a": file_mode,
    }


async def test_what_a_crash_left_keeps_no_wider_permissions(
    store: FileStore, tmp_path: Path
) -> None:
    """An object would be open to all because a file of an older version was."""
    left = tmp_path / "objects" / ".a.tmp"
    left.write_bytes(b"half")
    left.chmod(0o666)
    with umask(0):
        await store.put("a", plain(b"whole"))
    assert modes(tmp_path / "objects") == {"a": 0o640}


@pytest.mark.parametrize("kind", ["symlink", "dangling symlink", "hard link", "pipe"])
async def test_a_link_in_place_of_the_temporary_file_is_not_followed(
    store: FileStore, tmp_path: Path, kind: str
) -> None:
    """A user who may write into the folder could have any file of the daemon's overwritten."""
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
            os.mkfifo(temporary)  # to open it for writing would wait for a reader
    await store.put("a", plain(b"x"))
    assert files(tmp_path / "objects") == {"a": b"x"}
    assert not (tmp_path / "objects" / "a").is_symlink()
    assert not victim.exists() or victim.read_bytes() == b"precious"


async def test_a_folder_in_place_of_the_temporary_file_waits_for_the_operator(
    store: FileStore, tmp_path: Path
) -> None:
    """An object would be dropped for something that an operator can move away."""
    (tmp_path / "objects" / ".a.tmp").mkdir()
    with pytest.raises(OperatorStoreError, match=r"EISDIR|EPERM"):
        await store.put("a", plain(b"x"))


async def test_another_process_that_is_faster_gets_no_payload(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link that comes back in the very moment would be followed after all."""
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
            await store.put("a", plain(b"x"))
    assert not victim.exists()


async def test_delete(store: FileStore, tmp_path: Path) -> None:
    """`payloadd check` would leave its probe behind."""
    await store.put("x/probe", plain(b"x"))
    await store.delete("x/probe")
    await store.delete("x/probe")

    assert files(tmp_path / "objects") == {}


@pytest.mark.parametrize(
    "key", ["../a", "/a", "a/", "a//b", "a/./b", "a/../../b", "", "a\0b", "a\udcffb", "n" * 300]
)
async def test_keys_that_are_no_files(store: FileStore, tmp_path: Path, key: str) -> None:
    """A key could write outside the folder, or be tried for ever."""
    with pytest.raises(InvalidObjectError):
        await store.put(key, plain(b"x"))
    assert files(tmp_path) == {}


@given(st.text(max_size=20))
async def test_no_key_leaves_the_root(tmp_path_factory: pytest.TempPathFactory, key: str) -> None:
    """A key could overwrite a file of the system."""
    base = tmp_path_factory.mktemp("keys")
    store = await open_file_store(base / "root")
    try:
        await store.put(key, plain(b"x"))
    except StoreError:
        assert files(base) == {}
    else:
        assert files(base) == {f"root/{key}": b"x"}


async def test_a_full_disk_waits_for_the_operator(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Payloads would be lost when the disk is full, and its last bytes wasted."""

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OperatorStoreError, match="ENOSPC: No space left"):
            await store.put("a", plain(b"x"))
    assert files(tmp_path / "objects") == {}

    await store.put("a", plain(b"x"))
    assert files(tmp_path / "objects") == {"a": b"x"}


async def test_a_folder_that_was_taken_away_is_made_again(store: FileStore, tmp_path: Path) -> None:
    """A clean-up job on old folders would stop the storing of new objects."""
    await store.put("day/a", plain(b"x"))
    (tmp_path / "objects/day/a").unlink()
    (tmp_path / "objects/day").rmdir()

    with pytest.raises(TransientStoreError, match="ENOENT"):
        await store.put("day/b", plain(b"x"))
    await store.put("day/b", plain(b"x"))

    assert files(tmp_path / "objects") == {"day/b": b"x"}


async def test_a_root_that_was_taken_away_is_not_made_again(
    store: FileStore, tmp_path: Path
) -> None:
    """Objects would go to the disk below an unmounted one."""
    (tmp_path / "objects").rmdir()

    with pytest.raises(OperatorStoreError, match="ENODEV"):
        await store.put("day/b", plain(b"x"))


async def test_a_file_where_a_folder_has_to_be(store: FileStore) -> None:
    """Objects would be dropped for something that an operator can move away."""
    await store.put("a", plain(b"x"))

    with pytest.raises(OperatorStoreError, match="EEXIST"):
        await store.put("a/b", plain(b"x"))


async def test_the_memory_of_folders_is_bounded(
    store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process would grow with every folder it ever wrote to."""
    monkeypatch.setattr("payloadd.storage.file._FOLDERS", 3)
    for index in range(10):
        await store.put(f"{index}/x", plain(b"x"))

    assert len(store._durable) <= 3
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
def test_errors_of_the_file_system(number: int, kind: type[StoreError]) -> None:
    """A payload would be given up that could be saved, or tried for ever in vain."""
    error = _store_error(OSError(number, os.strerror(number), "x"))

    assert type(error) is kind
    assert error.code == errno.errorcode[number]


def test_an_error_without_a_number() -> None:
    """An odd error of a file system would stop the pipeline."""
    assert str(_store_error(OSError("odd"))) == "EIO: odd: object"


async def test_a_root_that_cannot_be(tmp_path: Path) -> None:
    """The daemon would start, take payloads, and have no place for them."""
    (tmp_path / "file").write_text("")

    with pytest.raises(StartError, match="STORE_URL: cannot make or use"):
        async with open_store(load({"STORE_URL": f"file://{tmp_path}/file/objects"})):
            raise AssertionError
