"""What `payloadd --version` says, and that a build records the commit and is reproducible."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

from payloadd import __version__, build_info
from payloadd.build_info import commit, recorded_commit, version_text
from tests.support.commands import invoke
from tests.support.daemon import ROOT

if TYPE_CHECKING:
    from pathlib import Path

GIT = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a checkout of a small project that is built as payloadd is."""
    root = tmp_path / "checkout"
    package = root / "daemon" / "payloadd"
    shutil.copytree(ROOT / "daemon" / "payloadd" / "ingress" / "page", package / "ingress" / "page")
    shutil.copytree(ROOT / ".ci", root / ".ci")
    shutil.copytree(ROOT / "systemd", root / "systemd")
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, root / name)
    for name in ("__init__.py", "build_info.py"):
        shutil.copy(ROOT / "daemon" / "payloadd" / name, package / name)
    (package / "__main__.py").write_text(
        "from payloadd.build_info import version_text\nprint(version_text())\n"
    )
    return root


def commit_all(root: Path) -> str:
    """Make a repository of a folder; return the commit as it is shown."""
    _run(*GIT, "init", "--quiet", cwd=root)
    _run(*GIT, "add", "--all", cwd=root)
    _run(*GIT, "commit", "--quiet", "--message=first", cwd=root)
    return _run(*GIT, "rev-parse", "HEAD", cwd=root).strip()[:12]


def build(root: Path, target: str, folder: Path) -> Path:
    """Build the wheel or the sdist of ``root`` into ``folder``; return its path."""
    command = (sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder))
    _run(*command, cwd=root)
    (found,) = folder.iterdir()
    return found


def installed_version(wheel: Path, folder: Path) -> str:
    """Unpack a wheel and return what its program prints."""
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return _run(sys.executable, "-m", "payloadd", cwd=folder).strip()


def _run(*command: str, cwd: Path) -> str:
    env = {
        name: text for name, text in os.environ.items() if not name.startswith(("COV", "PYTHON"))
    }
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def test_the_version_names_the_commit_and_the_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report of a bug would not say which code has it."""
    monkeypatch.setattr(build_info, "commit", lambda: "0123456789ab")
    done = await invoke("--version", folder=tmp_path)
    python = platform.python_version()
    assert done.stdout == f"payloadd {__version__} (commit 0123456789ab, Python {python})\n"
    monkeypatch.setattr(build_info, "commit", lambda: None)
    assert "(commit not known, Python" in version_text()


def test_the_commit_of_a_checkout_comes_from_git(checkout: Path) -> None:
    """A developer could not tell which code runs."""
    package = checkout / "daemon" / "payloadd"
    assert commit(package) is None
    expected = commit_all(checkout)
    assert commit(package) == expected
    (package / "__init__.py").write_text("")
    assert commit(package) == f"{expected}-modified"
    assert recorded_commit(package) is None
    shutil.rmtree(checkout / ".git")
    (checkout / ".git").mkdir()
    assert commit(package) is None


def test_an_installed_package_does_not_take_the_commit_of_the_folder_around_it(
    tmp_path: Path,
) -> None:
    """A virtual environment in the repository of another project would show its commit."""
    package = tmp_path / "lib" / "payloadd"
    package.mkdir(parents=True)
    (tmp_path / "file").write_text("")
    commit_all(tmp_path)
    assert commit(package) is None


def test_a_wheel_and_an_sdist_know_their_commit(checkout: Path, tmp_path: Path) -> None:
    """The version of an installed daemon would not say which code it is."""
    expected = commit_all(checkout)
    wheel = build(checkout, "wheel", tmp_path / "wheel")
    assert f"(commit {expected}, Python" in installed_version(wheel, tmp_path / "one")
    sdist = build(checkout, "sdist", tmp_path / "sdist")
    shutil.unpack_archive(sdist, tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    # A repository around the sdist, as that of a distribution's packaging.
    commit_all(tmp_path / "unpacked")
    wheel = build(unpacked, "wheel", tmp_path / "again")
    assert f"(commit {expected}, Python" in installed_version(wheel, tmp_path / "two")


def test_a_build_without_a_repository_says_that_the_commit_is_not_known(
    checkout: Path, tmp_path: Path
) -> None:
    """A wrong commit would be worse than none."""
    commit_all(tmp_path)
    wheel = build(checkout, "wheel", tmp_path / "wheel")
    assert "(commit not known, Python" in installed_version(wheel, tmp_path / "installed")


def test_the_same_commit_gives_the_same_wheel(tmp_path: Path) -> None:
    """No user could check that a published wheel was built from the published source."""
    names = _run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    files = [name for name in names if name and (ROOT / name).is_file()]
    wheels = []
    for number, order in enumerate((files, files[::-1])):
        root = tmp_path / f"checkout-{number}"
        for name in order:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, root / name)
            # Another time, and another umask.
            os.utime(root / name, (10**9 * (number + 1),) * 2)
            (root / name).chmod((0o600, 0o664)[number])
        wheels.append(build(root, "wheel", tmp_path / f"wheel-{number}").read_bytes())
    assert wheels[0] == wheels[1]


def test_the_time_in_a_wheel_is_that_of_source_date_epoch(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A distribution could not build the same package again."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(1_800_000_000))
    wheel = build(checkout, "wheel", tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as file:
        assert {one.date_time for one in file.infolist()} == {(2027, 1, 15, 8, 0, 0)}
