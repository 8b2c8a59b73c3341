"""A folder with Debian, systemd and Python: made once on a machine, used by every run.

It is in ``$XDG_CACHE_HOME/payloadd-tests``. There is a base, made by debootstrap (about a minute),
and a copy of it for each list of dependencies that pyproject.toml has had, with the dependencies
installed in /opt/payloadd (half a minute). Both use the mirrors and indexes of the machine. Tests
do not write into these folders.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.support.daemon import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

SUITE: Final = "bookworm"
PYTHON: Final = "3.11"
WHEELS: Final = "var/lib/wheels"
"""Folder of the dependencies' wheels, relative to the root of the tree."""
_PACKAGES: Final = "systemd,systemd-sysv,dbus,python3,python3-venv"


def tree() -> Path:
    """Return the tree with the current dependencies; make it if it does not exist."""
    base = _cache() / SUITE
    dependencies = _dependencies()
    digest = hashlib.sha256("\n".join(dependencies).encode()).hexdigest()[:16]
    ready = _cache() / f"{SUITE}-{digest}"
    with _locked():
        if not base.exists():
            with _made(base) as new:
                _run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}",
                     SUITE, str(new), _mirror())  # fmt: skip
        if not ready.exists():
            with _made(ready) as new:
                _run("cp", "-a", "--reflink=auto", f"{base}/.", str(new))
                _install(dependencies, new)
    return ready


def _dependencies() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return sorted(project["dependencies"])


def _install(dependencies: list[str], root: Path) -> None:
    """Install the dependencies in ``root`` from wheels, which stay there."""
    # Downloaded on the host, whose pip is configured for its index and certificates.
    _run(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"),
        *("--python-version", PYTHON, "--dest", str(root / WHEELS), *dependencies),
    )
    wheels = [f"/{WHEELS}/{path.name}" for path in (root / WHEELS).iterdir()]
    inside = ("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--pipe", "-D", root)
    _run(*inside, "python3", "-m", "venv", "/opt/payloadd")
    _run(*inside, "/opt/payloadd/bin/pip", "install", "--quiet", "--no-index", *wheels)


def _mirror() -> str:
    """Return the URL from which apt gets the packages of this machine."""
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(CODENAME) $(ORIGIN) $(REPO_URI)"],
        check=True,
        capture_output=True,
        text=True,
    )
    targets = [line.split() for line in done.stdout.splitlines()]
    debian = [target for target in targets if target[1:2] == ["Debian"]]
    same = [uri for suite, _, uri in debian if suite == SUITE]
    return next(iter(same or [uri for _, _, uri in debian]))


def _cache() -> Path:
    above = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(above) / "payloadd-tests"


@contextmanager
def _locked() -> Iterator[None]:
    """Keep other runs from making a tree while the body runs."""
    _cache().mkdir(parents=True, exist_ok=True)
    with (_cache() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _made(folder: Path) -> Iterator[Path]:
    """Yield a new folder, which becomes ``folder`` if the body succeeds."""
    new = folder.with_suffix(".new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    yield new
    new.rename(folder)


def _run(*command: str | Path) -> None:
    done = subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
