"""Read settings that systemd passes as files (systemd.exec(5), "CREDENTIALS")."""

from __future__ import annotations

from pathlib import Path


def read_credentials(folder: str | None) -> tuple[dict[str, str], list[str]]:
    """Read a credentials directory; returns texts by file name, and problems.

    Line breaks at the end of a file are removed. Without a folder both are empty.
    """
    if not folder:
        return {}, []
    try:
        files = {
            path.name: path.read_text(encoding="utf-8").rstrip("\r\n")
            for path in Path(folder).iterdir()
            if path.is_file()
        }
    except (OSError, UnicodeDecodeError) as error:
        return {}, [f"CREDENTIALS_DIRECTORY: cannot read {folder!r}: {error}"]
    return files, []
