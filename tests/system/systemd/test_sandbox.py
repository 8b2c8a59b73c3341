"""The sandbox of the unit: a probe tries to leave it from inside."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

import pytest

from tests.system.systemd.unit import configured

if TYPE_CHECKING:
    from typing import Any

    from tests.system.systemd.machine import Machine

pytestmark = pytest.mark.no_cover

UNITS: Final = "/usr/local/lib/systemd/system"
WORST: Final = 1.5

_PRIVATE: Final = "/tmp/x"  # noqa: S108 - inside it is a private one
# Runs with the standard library alone, as the main process of a service.
_PROBE: Final = """
import ctypes, errno, json, os, socket, subprocess

def attempt(function, *arguments):
    try:
        return function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]

def write(path):
    with open(path, "w") as file:
        file.write("x")
    return "written"

def connect(address):
    with socket.create_connection(address, timeout=0.5):
        return "connected"

libc = ctypes.CDLL(None, use_errno=True)
silent = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
def call(name, *arguments):
    return "done" if getattr(libc, name)(*arguments) == 0 else errno.errorcode[ctypes.get_errno()]

found = json.dumps({
    "uid": os.getuid(),
    "write": {path: attempt(write, path) for path in (
        "/etc/x", "/usr/x", "/opt/payloadd/x", "/var/x", "/var/lib/x", "/root/x", "/home/x",
        "/proc/sys/kernel/hostname", "/sys/kernel/x", "/run/x",
        "/var/lib/payloadd/x", "/run/payloadd/x", "/tmp/x")},
    "list": {path: attempt(os.listdir, path) for path in ("/home", "/root", "/tmp")},
    "read": {path: attempt(lambda p: open(p).read(1), path) for path in (
        "/etc/shadow", "/etc/payloadd/payloadd.env", "/proc/1/environ", "/home/someone/secret")},
    "devices": sorted(set(os.listdir("/dev")) & {"mem", "kmsg", "sda", "vda", "net", "kvm"}),
    "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
    "capabilities": [line.split()[1] for line in open("/proc/self/status")
                     if line.startswith(("CapEff", "CapPrm", "CapBnd", "CapAmb"))],
    "setuid": attempt(os.setuid, 0),
    "setgroups": attempt(os.setgroups, [0]),
    "chroot": attempt(os.chroot, "/tmp"),
    "unshare": call("unshare", 0x10000000),
    "mount": call("mount", b"tmpfs", b"/tmp", b"tmpfs", 0, None),
    "ptrace": call("ptrace", 16, 1, None, None),
    "su": subprocess.run(["su", "-c", "id"], **silent).returncode,
    "setuid_bit": attempt(lambda: (write("/tmp/s"), os.chmod("/tmp/s", 0o4755))),
    "raw_socket": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1) and "open"),
    "packet_socket": attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW) and "open"),
    "low_port": attempt(lambda: socket.create_server(("127.0.0.1", 1)) and "listening"),
    "loopback": connect(("127.0.0.1", PORT)),
    "metadata": attempt(connect, ("169.254.169.254", 80)),
})
print(found)
"""


async def test_systemd_accepts_every_line_of_the_units(machine: Machine) -> None:
    """A line with a mistake is ignored by systemd, and the sandbox lacks it."""
    names = ("payloadd.service", "payloadd@1.service", "payloadd.socket", "payloadd.target")
    for name in names:
        assert await machine.run("systemd-analyze", "verify", name) == ""


@pytest.mark.parametrize("name", ["payloadd.service", "payloadd@1.service"])
async def test_systemd_rates_the_exposure_as_low(machine: Machine, name: str) -> None:
    """An attacker in control of the daemon could use more than the daemon needs."""
    text = await machine.run("systemd-analyze", "security", "--no-pager", name)
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", text)
    assert level is not None, text
    assert float(level[1]) <= WORST, text


async def test_a_process_in_the_sandbox_can_do_only_what_the_daemon_needs(machine: Machine) -> None:
    """An attacker in control of the daemon could control the machine."""
    found = await _probe(machine)
    allowed = {path for path, result in found["write"].items() if result == "written"}
    assert allowed == {"/var/lib/payloadd/x", "/run/payloadd/x", _PRIVATE}, found["write"]
    assert not (machine.root / "tmp/x").exists()
    assert found["uid"] != 0
    # Empty or not readable; the container has files in both.
    assert found["list"]["/home"] in ([], "EACCES")
    assert found["list"]["/root"] in ([], "EACCES")
    assert set(found["read"].values()) <= {"EACCES", "ENOENT"}, found["read"]
    assert found["devices"] == []
    assert 1 not in found["processes"]
    assert set(found["capabilities"]) == {"0" * 16}
    refused = ("setuid", "setgroups", "chroot", "unshare", "mount", "ptrace", "raw_socket")
    assert {found[name] for name in refused} == {"EPERM"}, found
    assert found["packet_socket"] == "EAFNOSUPPORT"
    assert found["su"] != 0
    assert found["setuid_bit"] == "EPERM"
    assert found["low_port"] == "EACCES"
    # The daemon needs S3 on the loopback, and the metadata service of a cloud.
    assert found["loopback"] == "connected"
    assert found["metadata"] not in ("EPERM", "EACCES"), found["metadata"]


async def _probe(machine: Machine) -> dict[str, Any]:
    """Run the probe in the sandbox of the service; returns the result of each attempt."""
    machine.write("home/someone/secret", "x", 0o644)
    async with configured(machine) as unit:
        await unit.systemctl("start")  # the probe connects to it
        machine.write("opt/probe.py", _PROBE.replace("PORT", str(unit.port)))
        text = (machine.root / UNITS.lstrip("/") / "payloadd.service").read_text()
        text = re.sub(r"(?m)^(Type|ExecStart|WatchdogSec|Restart)=.*\n", "", text)
        text = text.replace("[Service]", "[Service]\nType=oneshot\nStandardOutput=file:/run/probe\n"
                            "ExecStart=/usr/bin/python3 /opt/probe.py")  # fmt: skip
        machine.write("etc/systemd/system/probe.service", text)
        await machine.run("systemctl", "daemon-reload")
        status, _ = await machine.attempt("systemctl", "start", "probe.service")
        assert status == 0, await machine.run("journalctl", "--no-pager", "--unit=probe")
        found: dict[str, Any] = json.loads(await machine.run("cat", "/run/probe"))
    return found
