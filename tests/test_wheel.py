"""The wheel: what it installs, and that it leaves the packages of others alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

from payloadd import __version__
from tests.support.daemon import ROOT
from tests.support.wheel import build_wheel

if TYPE_CHECKING:
    from pathlib import Path

_IMPORT_BOTH = """
import sys
sys.path.insert(0, sys.argv[1])
import daemon, payloadd.cli.main
print(daemon.__file__, payloadd.__file__, sep="\\n")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def _assert_both_are_imported_from(folder: Path) -> None:
    """Import payloadd and a package named ``daemon`` in a new process, both from ``folder``."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", _IMPORT_BOTH, str(folder)],
        # This copy of the package is not the one whose coverage is measured.
        env={name: text for name, text in os.environ.items() if not name.startswith("COV")},
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = [folder / "daemon" / "__init__.py", folder / "payloadd" / "__init__.py"]
    assert done.stdout.splitlines() == [str(path) for path in expected]


def test_wheel_installs_one_package(wheel: Path) -> None:
    """Another top-level name would overwrite the package of another project."""
    with zipfile.ZipFile(wheel) as file:
        top_level = {name.split("/")[0] for name in file.namelist()}
    assert top_level == {"payloadd", f"payloadd-{__version__}.dist-info"}


def test_the_command_starts_as_python_m_does(wheel: Path) -> None:
    """The installed command would import with garbage collections, unlike the one of the tests."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith("/entry_points.txt"))
        points = file.read(name).decode().split()
    assert points == ["[console_scripts]", "payloadd", "=", "payloadd.__main__:main"]


def test_wheel_contains_the_units(wheel: Path) -> None:
    """``payloadd systemd install`` would find nothing to install."""
    with zipfile.ZipFile(wheel) as file:
        units = {name.rpartition("/")[2] for name in file.namelist() if "/units/" in name}
    assert {"payloadd.service", "payloadd@.service", "payloadd.socket", "payloadd.env"} <= units


def test_wheel_contains_the_status_page_and_the_licence_of_its_library(wheel: Path) -> None:
    """The status page would be missing, or uPlot would be passed on without its licence."""
    page = ROOT / "daemon" / "payloadd" / "ingress" / "page"
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        script = file.read("payloadd/ingress/page/uplot.js").decode()
    files = {path.name for path in page.iterdir()}
    assert {"index.html", "page.css", "page.js", "uplot.css", "uplot.js"} <= files
    assert {f"payloadd/ingress/page/{name}" for name in files} <= names
    licenses = {name.partition("/licenses/")[2] for name in names if "/licenses/" in name}
    assert licenses == {"LICENSE", "daemon/payloadd/ingress/page/uplot-LICENSE.txt"}
    assert re.match(r"/\*! \S+/uPlot \(v\d+\.\d+\.\d+\) \*/", script)


def test_wheel_leaves_a_package_named_daemon_alone(wheel: Path, tmp_path: Path) -> None:
    """Programs that use python-daemon, whose package is ``daemon``, would stop working."""
    (tmp_path / "daemon").mkdir()
    (tmp_path / "daemon" / "__init__.py").write_text("")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    assert [path.name for path in (tmp_path / "daemon").glob("*.py")] == ["__init__.py"]
    _assert_both_are_imported_from(tmp_path)


def test_python_daemon_is_imported_beside_payloadd(wheel: Path, tmp_path: Path) -> None:
    """The same with the real python-daemon, where pip reaches a package index."""
    install = (
        *(sys.executable, "-m", "pip", "install", "--quiet", "--retries=0", "--timeout=5"),
        *("--disable-pip-version-check", "--root-user-action=ignore", "--target", str(tmp_path)),
    )
    fetched = subprocess.run(
        [*install, "python-daemon>=3,<4"],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if fetched.returncode != 0:
        pytest.skip("pip reaches no package index; the test above does the same with a stand-in")
    subprocess.run([*install, "--no-deps", str(wheel)], check=True, stdin=subprocess.DEVNULL)
    _assert_both_are_imported_from(tmp_path)
