"""Read settings that systemd passes as files (systemd.exec(5), "CREDENTIALS").

The folder may hold files of other programs, of any kind: only files with the name of a setting are
opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

PEM_BEGIN: Final = "-----BEGIN "
"""Text that every PEM file has, and no path of one (RFC 7468, section 2)."""


def read_credentials(
    folder: str | None, names: Collection[str], pem_names: Collection[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """Read the files of a credentials directory that are named ``names``.

    Returns texts by file name, and problems. Line breaks at the end of a file are removed. The
    text of a file in ``pem_names`` that holds a PEM document is the path of the file itself: a
    private key stays in the file, and the file can be read again. Without a folder both are empty.
    """
    if not folder:
        return {}, []
    try:
        present = [path for path in Path(folder).iterdir() if path.name in names]
    except OSError as error:
        return {}, [f"CREDENTIALS_DIRECTORY: cannot read {folder!r}: {error}"]
    texts: dict[str, str] = {}
    problems: list[str] = []
    for path in sorted(present):
        try:
            if path.is_file():
                texts[path.name] = _read(path, pem=path.name in pem_names)
        except OSError as error:
            problems.append(f"CREDENTIALS_DIRECTORY: cannot read {str(path)!r}: {error}")
        except UnicodeDecodeError:
            name = path.name.upper()
            problems.append(f"{name}: {str(path)!r} is not allowed; allowed is a text in UTF-8")
    return texts, problems


def _read(path: Path, *, pem: bool) -> str:
    """Return the text of a file, or its path for a PEM document. May raise UnicodeDecodeError."""
    content = path.read_bytes()
    # Not at the beginning only: tools write the names of certificates in front of them.
    if pem and PEM_BEGIN.encode() in content:
        return str(path)
    return content.decode("utf-8").rstrip("\r\n")
