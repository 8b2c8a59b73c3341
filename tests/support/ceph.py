"""Ceph's object gateway (radosgw) with a cluster of one monitor and one OSD, all in memory.

The programs are Debian's (``ceph-mon``, ``ceph-osd``, ``radosgw``). A cluster needs neither root
nor a manager daemon for objects to be stored. Authentication within it is cephx, as in a real one.
Source: "Manual deployment", Ceph documentation.
"""

from __future__ import annotations

import os
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from tests.support.processes import Processes, free_ports
from tests.support.s3 import S3Server, wait_until_ready
from tests.support.tools import SEARCH_PATH

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAMS: Final = (
    *("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin"),
    *("ceph", "ceph-authtool", "monmaptool"),
)
_ACCESS_KEY: Final = "ceph-user"
_SECRET_KEY: Final = "ceph/secret+key"
_CONFIG: Final = """\
[global]
fsid = {fsid}
mon host = {monitor}
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {folder}/keyring
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
run dir = {folder}
admin socket =
pid file =
log file =
log to stderr = true
mon data = {folder}/mon
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail crit = 1
mon data avail warn = 1
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
osd heartbeat grace = 600
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port}
"""
_KEYS: Final = (
    ("mon.", "mon", "allow *"),
    ("client.admin", "mon", "allow *", "osd", "allow *"),
    ("osd.0", "mon", "allow profile osd", "osd", "allow *"),
    ("client.rgw", "mon", "allow rw", "osd", "allow rwx"),
)
"""The identities of the cluster: a name, and pairs of a daemon and the rights there."""


@contextmanager
def radosgw(folder: Path) -> Iterator[S3Server]:
    """Run a cluster with its files in ``folder``; it stores objects when the block is entered."""
    folder = folder.absolute()
    config = folder / "ceph.conf"
    environ = {"PATH": SEARCH_PATH, "HOME": str(folder), "CEPH_CONF": str(config), "LC_ALL": "C"}
    processes = Processes(folder, environ | {"USER": os.environ.get("USER", "")})
    try:
        port = _start(processes, folder, config)
        server = S3Server(f"http://127.0.0.1:{port}", _ACCESS_KEY, _SECRET_KEY)
        wait_until_ready(server, processes)
        yield server
    finally:
        processes.stop()


def _start(processes: Processes, folder: Path, config: Path) -> int:
    """Start the cluster and the gateway; returns the gateway's port."""
    *monitor_ports, port = free_ports(3)
    fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
    monitor = "[v2:127.0.0.1:{}/0,v1:127.0.0.1:{}/0]".format(*monitor_ports)
    config.write_text(_CONFIG.format(fsid=fsid, monitor=monitor, folder=folder, port=port))
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir()
    _make_keys(processes, folder / "keyring")
    monmap = str(folder / "monmap")
    processes.run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", monitor, monmap)
    processes.run(
        "ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap, "--keyring", str(folder / "keyring")
    )
    processes.start("ceph-mon", "-i", "a", "-f")
    processes.run("ceph", "osd", "new", osd, "0")
    processes.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
    processes.start("ceph-osd", "-i", "0", "-f")
    processes.run(
        *("radosgw-admin", "user", "create", "--uid=t", "--display-name=t"),
        *(f"--access-key={_ACCESS_KEY}", f"--secret-key={_SECRET_KEY}"),
    )
    processes.start("radosgw", "-n", "client.rgw", "-f")
    return port


def _make_keys(processes: Processes, keyring: Path) -> None:
    """Write one keyring for all: the monitor imports it when its data is created."""
    create = ["-C"]
    for name, *rights in _KEYS:
        pairs = zip(rights[::2], rights[1::2], strict=True)
        caps = [word for daemon, right in pairs for word in ("--cap", daemon, right)]
        processes.run("ceph-authtool", *create, str(keyring), "--gen-key", "-n", name, *caps)
        create = []
