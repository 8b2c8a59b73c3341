"""The contracts on imports fail for an import that they forbid."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT: Final = Path(__file__).resolve().parents[1]
_LINT_IMPORTS: Final = Path(sys.executable).with_name("lint-imports")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Copy the package and its contracts to a folder."""
    folder = tmp_path_factory.mktemp("layers")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "daemon", folder / "daemon", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    yield folder
    shutil.rmtree(folder)


def _lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run lint-imports on the package in ``folder``."""
    return subprocess.run(
        [str(_LINT_IMPORTS), "--no-cache"],
        cwd=folder,
        env={"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(folder / "daemon")},
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )


def test_contracts_hold_in_a_copy(copy: Path) -> None:
    """The tests below could pass for another reason than the import that they add."""
    done = _lint(copy)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "imported", "contract"),
    [
        ("model/job.py", "payloadd.pipeline.queue", "Packages import only packages below them"),
        ("files.py", "payloadd.config.parsers", "Packages import only packages below them"),
        ("new_module.py", "payloadd.pipeline.queue", "Packages import only packages below them"),
        ("observe/health.py", "payloadd.model.job", "Packages import only packages below them"),
        (
            "journal/api.py",
            "payloadd.pipeline.accounting",
            "Packages import only packages below them",
        ),
        ("storage/file.py", "payloadd.journal.api", "Packages import only packages below them"),
        ("ingress/problem.py", "payloadd.pipeline.worker", "ingress imports only intake"),
        ("ingress/server/tls.py", "payloadd.journal.api", "ingress imports only intake"),
        ("pipeline/worker.py", "payloadd.storage.s3.store", "import only the APIs"),
        (
            "pipeline/intake.py",
            "payloadd.journal.sqlite.schema",
            "import only the APIs",
        ),
        ("systemd/watchdog.py", "payloadd.journal.open", "import only the APIs"),
        (
            "journal/memory.py",
            "payloadd.journal.sqlite.schema",
            "Journals do not import each other",
        ),
        (
            "storage/http1/request.py",
            "payloadd.storage.s3.sigv4",
            "Stores do not import each other",
        ),
        (
            "ingress/server/tls.py",
            "payloadd.ingress.fastpath.head",
            "imports neither apps nor fast path",
        ),
        ("ingress/new_module.py", "payloadd.pipeline.worker", "ingress imports only intake"),
        ("journal/sqlite/schema.py", "payloadd.journal.sqlite.database", "No import circles"),
    ],
)
def test_a_forbidden_import_breaks_its_contract(
    copy: Path, module: str, imported: str, contract: str
) -> None:
    """A module could import what the design forbids, and no tool would report it."""
    path = copy / "daemon" / "payloadd" / module
    before = path.read_bytes() if path.exists() else None
    package, _, name = imported.rpartition(".")
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\nfrom {package} import {name}\n")
    try:
        done = _lint(copy)
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_bytes(before)
    assert done.returncode == 1, done.stdout + done.stderr
    broken = [line for line in done.stdout.splitlines() if " BROKEN" in line]
    assert any(contract in line for line in broken), done.stdout
