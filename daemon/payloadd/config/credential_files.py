"""Secrets that systemd hands over as files (systemd.exec(5), "CREDENTIALS")."""

from __future__ import annotations

from pathlib import Path


def read_credentials(folder: str | None) -> tuple[dict[str, str], list[str]]:
    """Return name to text (without the last line break) of a credentials directory; problems."""
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
