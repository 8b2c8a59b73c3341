"""A machine with systemd for all tests here; payloadd is installed as in the README."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests.support.tools import need_tools
from tests.support.wheel import build_wheel
from tests.system.systemd.machine import Machine, booted
from tests.system.systemd.tree import WHEELS, tree

if TYPE_CHECKING:
    from collections.abc import Iterator

INSTALL: Final = (
    "python3 -m venv /opt/payloadd",
    "/opt/payloadd/bin/pip install payloadd",
    "/opt/payloadd/bin/payloadd systemd install",
    # Without --now: each test starts the unit with its own settings. Enabled, because systemd
    # forgets the result of a stopped unit that is not enabled.
    "systemctl enable payloadd",
)
"""The commands of the README, except that its last one has ``--now``."""


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Boot a machine and install payloadd on it."""
    need_tools("debootstrap", "systemd-nspawn")
    if os.geteuid() != 0:
        pytest.skip("a container with systemd needs root")
    folder = tmp_path_factory.mktemp("machine")
    with booted(tree(), folder) as machine:
        build_wheel(machine.root / WHEELS)
        machine.write("etc/pip.conf", f"[global]\nno-index = true\nfind-links = /{WHEELS}\n")
        for command in INSTALL:
            trio.run(partial(machine.run, "sh", "-c", command))
        yield machine
