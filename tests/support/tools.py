"""Programs that some tests need and that pip cannot install."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

# Debian installs daemons into /usr/sbin, which is not on the PATH of every user.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
_PACKAGES = {
    "caddy": "caddy",
    "chromium": "chromium",
    "curl": "curl",
    "go": "golang-go",
    "haproxy": "haproxy",
    "java": "default-jdk-headless",
    "nginx": "nginx-light",
    "node": "nodejs",
    "pgbouncer": "pgbouncer",
    "syslog-ng": "syslog-ng-core syslog-ng-mod-http",
    "promtool": "prometheus",
    "wrk": "wrk",
    "debootstrap": "debootstrap",
    "dh_virtualenv": "dh-virtualenv debhelper",
    "dpkg-buildpackage": "dpkg-dev",
    "strace": "strace",
    "bash": "bash",
    "fish": "fish",
    "groff": "groff-base",
    "zsh": "zsh",
    "systemd-nspawn": "systemd-container",
    "ceph": "ceph-common",
    "ceph-authtool": "ceph-common",
    "ceph-mon": "ceph-mon",
    "ceph-osd": "ceph-osd",
    "monmaptool": "ceph-base",
    "radosgw": "radosgw",
    "radosgw-admin": "ceph-common",
    "memcached": "memcached",
    "swift-account-server": "swift-account",
    "swift-container-server": "swift-container",
    "swift-object-server": "swift-object",
    "swift-proxy-server": "swift-proxy",
    "swift-ring-builder": "swift",
}


def missing_tools(*names: str) -> str | None:
    """Return a text with the missing programs and the command that installs them, or None."""
    missing = [name for name in names if shutil.which(name, path=SEARCH_PATH) is None]
    if not missing:
        return None
    packages = " ".join(_PACKAGES[name] for name in missing)
    return f"{', '.join(missing)} not found; on Debian: apt-get install {packages}"


def find_tool(name: str) -> str:
    """Return the path of an installed program."""
    path = shutil.which(name, path=SEARCH_PATH)
    assert path is not None, missing_tools(name)
    return path


def need_tools(*names: str) -> None:
    """Skip the test if a program is missing; with CI set, fail."""
    missing = missing_tools(*names)
    if missing is not None:
        give_up(missing)


def give_up(reason: str) -> NoReturn:
    """Skip the test; with CI set, fail."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
