"""Write the commit into the wheel and the sdist: `payloadd --version` shows it.

Hatchling calls this hook (pyproject.toml). A build from a checkout asks git. An sdist carries the
file that its own build wrote. A build from neither (a tarball of a hosting service) has no such
file, and `payloadd --version` says that the commit is not known.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_PLACES = {"wheel": "payloadd/commit.txt", "sdist": "daemon/payloadd/commit.txt"}


class CommitHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the file `commit.txt` to the package."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the file, unless the package stays in the checkout (`pip install -e`)."""
        commit = None if version == "editable" else _commit(Path(self.root))
        if commit is not None:
            folder = Path(tempfile.mkdtemp())
            self._written = folder / "commit.txt"
            self._written.write_text(f"{commit}\n")
            self._written.chmod(0o644)
            build_data["force_include"][str(self._written)] = _PLACES[self.target_name]

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Delete the file, which is in the artifact now."""
        written = getattr(self, "_written", None)
        if written is not None:
            written.unlink()
            written.parent.rmdir()


def _commit(root: Path) -> str | None:
    """Return the commit of a checkout, with `-modified` if files differ from it, or None."""
    # Without this test git would describe a repository around the folder.
    if not (root / ".git").exists():
        return None
    # The checkout may belong to another user; its code is run by the build anyway.
    command = ["git", "-c", "safe.directory=*", "-C", str(root), "describe"]
    command += ["--always", "--exclude=*", "--abbrev=12", "--dirty=-modified"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
