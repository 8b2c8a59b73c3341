"""Room that is held back: taken, given up, and not taken back too early."""

from __future__ import annotations

from typing import TYPE_CHECKING

from payloadd.journal.sqlite.disk_reserve import FILE, DiskReserve
from tests.crash.disk import small_disk

if TYPE_CHECKING:
    from pathlib import Path

KIB = 1024


def _size(folder: Path) -> int | None:
    """Return the bytes that the reserve holds on the disk, None without one."""
    file = folder / FILE
    return file.stat().st_blocks * 512 if file.exists() else None


def test_a_small_disk_gives_an_eighth(tmp_path: Path) -> None:
    """The reserve itself would fill a small disk; or hold nothing but a size."""
    with small_disk(tmp_path / "disk", "2m") as disk:
        reserve = DiskReserve(disk.path)
        assert reserve.create()
        assert reserve.create()
        assert _size(disk.path) == 256 * KIB
        reserve.release()
        reserve.release()
        assert _size(disk.path) is None


def test_it_comes_back_with_room_to_spare(tmp_path: Path) -> None:
    """A full disk would be called well the moment its reserve is given up, again and again."""
    with small_disk(tmp_path / "disk", "2m") as disk:
        reserve = DiskReserve(disk.path)
        ballast = disk.path / "ballast"
        ballast.write_bytes(bytes((2048 - 256 - 128) * KIB))
        assert reserve.create()
        reserve.release()
        assert not reserve.recreate()
        assert _size(disk.path) is None
        ballast.unlink()
        assert reserve.recreate()
        assert _size(disk.path) == 256 * KIB


def test_no_room_is_no_error(tmp_path: Path) -> None:
    """A daemon on a full disk would not start, or end where it should wait."""
    with small_disk(tmp_path / "disk", "2m") as disk:
        reserve = DiskReserve(disk.path)
        disk.fill(0)
        assert not reserve.create()
        assert _size(disk.path) is None
