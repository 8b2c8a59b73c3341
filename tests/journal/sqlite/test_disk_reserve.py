"""The disk reserve: created, released, and not created again too early."""

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


def test_the_reserve_takes_an_eighth_of_a_small_disk(tmp_path: Path) -> None:
    """Otherwise the reserve fills a small disk; or reserves no blocks."""
    with small_disk(tmp_path / "disk", "2m") as disk:
        reserve = DiskReserve(disk.path)
        assert reserve.create()
        assert reserve.create()
        assert _size(disk.path) == 256 * KIB
        reserve.release()
        reserve.release()
        assert _size(disk.path) is None


def test_the_reserve_is_recreated_only_with_space_to_spare(tmp_path: Path) -> None:
    """Otherwise the trouble of a full disk ends with each release, and begins again."""
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


def test_a_full_disk_is_no_error(tmp_path: Path) -> None:
    """Otherwise a daemon on a full disk does not start, or ends where it should wait."""
    with small_disk(tmp_path / "disk", "2m") as disk:
        reserve = DiskReserve(disk.path)
        disk.fill(0)
        assert not reserve.create()
        assert _size(disk.path) is None
