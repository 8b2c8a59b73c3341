"""Files that the documents name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    path.relative_to(ROOT)
    for path in (
        ROOT / "README.md",
        *(ROOT / ".github").glob("*.md"),
        *(ROOT / "daemon").rglob("*.md"),
        ROOT / "tests/README.md",
    )
    if path.exists()
]
_FILE = re.compile(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|md|toml))`")
_LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_the_files_that_a_document_names_exist(document: Path) -> None:
    """A contributor would look for a file that was renamed."""
    text = (ROOT / document).read_text()
    folder = ROOT / document.parent
    missing = [link for link in _LINK.findall(text) if not (folder / link).exists()]
    known = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file()]
    missing += [
        name
        for name in _FILE.findall(text)
        if not any(path == name or path.endswith(f"/{name}") for path in known)
    ]
    assert missing == []
