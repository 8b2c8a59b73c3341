"""OpenStack Swift with its S3 interface (s3api): one node of each kind, with one replica.

The programs are Debian's (``swift-proxy``, ``swift-account``, ``swift-container``,
``swift-object``, ``memcached``). Objects need a file system with user extended attributes.
Source: "SAIO - Swift All In One" and the sample configurations, Swift documentation.
"""

from __future__ import annotations

import getpass
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from tests.support.processes import Processes, free_ports
from tests.support.s3 import REGION, S3Server, wait_until_ready
from tests.support.tools import SEARCH_PATH

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROGRAMS: Final = (
    *("swift-proxy-server", "swift-account-server", "swift-container-server"),
    *("swift-object-server", "swift-ring-builder", "memcached"),
)
_ACCESS_KEY: Final = "test:tester"
_SECRET_KEY: Final = "testing"
_BACKENDS: Final = ("account", "container", "object")
_SWIFT: Final = """\
[swift-hash]
swift_hash_path_suffix = t
swift_hash_path_prefix = t
[storage-policy:0]
name = only
default = yes
"""
_SERVER: Final = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {user}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
log_level = ERROR
"""
_BACKEND: Final = """\
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""
_PROXY: Final = """\
[pipeline:main]
pipeline = catch_errors gatekeeper cache s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcached}
[filter:s3api]
use = egg:swift#s3api
location = {region}
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:slo]
use = egg:swift#slo
"""


@contextmanager
def swift(folder: Path) -> Iterator[S3Server]:
    """Run the servers with their data in ``folder``; they are ready when the block is entered."""
    folder = folder.absolute()
    processes = Processes(folder, {"PATH": SEARCH_PATH, "HOME": str(folder), "LC_ALL": "C.UTF-8"})
    try:
        port = _start(processes, folder)
        server = S3Server(f"http://127.0.0.1:{port}", _ACCESS_KEY, _SECRET_KEY)
        wait_until_ready(server, processes)
        yield server
    finally:
        processes.stop()


def _start(processes: Processes, folder: Path) -> int:
    """Start memcached, the storage servers and the proxy; returns the proxy's port."""
    (folder / "devices" / "one").mkdir(parents=True)
    (folder / "swift.conf").write_text(_SWIFT)
    memcached, proxy, *backends = free_ports(2 + len(_BACKENDS))
    user = getpass.getuser()
    processes.start(*("memcached", "-u", user, "-l", "127.0.0.1", "-p", str(memcached), "-U", "0"))
    for name, port in zip(_BACKENDS, backends, strict=True):
        _make_ring(processes, folder / f"{name}.builder", port)
        _write_config(folder, name, port, _BACKEND.format(name=name))
    _write_config(folder, "proxy", proxy, _PROXY.format(memcached=memcached, region=REGION))
    for name in (*_BACKENDS, "proxy"):
        processes.start(f"swift-{name}-server", str(folder / f"{name}-server.conf"))
    return proxy


def _make_ring(processes: Processes, builder: Path, port: int) -> None:
    """Write a ring of 16 partitions with one replica on one device."""
    processes.run("swift-ring-builder", str(builder), "create", "4", "1", "1")
    device = f"r1z1-127.0.0.1:{port}/one"
    processes.run("swift-ring-builder", str(builder), "add", device, "1")
    processes.run("swift-ring-builder", str(builder), "rebalance")


def _write_config(folder: Path, name: str, port: int, text: str) -> None:
    server = _SERVER.format(port=port, user=getpass.getuser(), folder=folder)
    (folder / f"{name}-server.conf").write_text(server + text)
