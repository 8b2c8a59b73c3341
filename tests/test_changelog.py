"""CHANGELOG.md: its newest version, and what it says about an upgrade from 0.1.0."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import pytest

from payloadd import __version__
from payloadd.config import settings as config
from payloadd.observe.metrics import Metrics
from tests.fixtures.version_3.journals import KEEPING, WHEEL

ROOT: Final = Path(__file__).parents[1]
CHANGELOG: Final = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
_EVENT: Final = re.compile(r"\blog\.(?:debug|info|warning|error|critical)\(\s*\"([a-z_]+)\"")
_OLD_FACTS: Final = f"""
import json, re, sys, zipfile
from dataclasses import fields
sys.path.insert(0, {str(WHEEL)!r})
from daemon.config import Settings
from daemon.metrics import Metrics
with zipfile.ZipFile({str(WHEEL)!r}) as wheel:
    sources = [wheel.read(name).decode() for name in wheel.namelist() if name.endswith(".py")]
print(json.dumps({{
    "defaults": {{one.name: one.metadata["default"] for one in fields(Settings)}},
    "metrics": sorted(family.name for family in Metrics().registry.collect()),
    "events": sorted(set(re.findall({_EVENT.pattern!r}, "".join(sources)))),
}}))
"""
"""A program that prints what users see of 0.1.0."""


@pytest.fixture(scope="module")
def old() -> dict[str, Any]:
    """Return the defaults, metrics and log events of 0.1.0, from its wheel."""
    done = subprocess.run(
        [sys.executable, "-c", _OLD_FACTS], check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_newest_version_is_the_same_everywhere() -> None:
    """A package would have another version than its changelog and its command."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    debian = (ROOT / "systemd/debian/changelog").read_text(encoding="utf-8")
    released = re.search(r"^## \[(\d[\d.]*)\]", CHANGELOG, re.MULTILINE)
    assert released is not None
    assert released[1] == project["version"] == __version__
    assert debian.startswith(f"payloadd ({__version__}) ")


def test_each_changed_default_has_a_setting_that_keeps_the_old_one(old: dict[str, Any]) -> None:
    """A user of 0.1.0 would look for the reason of a change, and not find how to undo it."""
    kept = config.load(KEEPING)
    for item in fields(config.Settings):
        former = old["defaults"].get(item.name)
        if former is not None and former != item.metadata["default"]:
            assert KEEPING[item.name.upper()] == former
            parsed = getattr(config.load({item.name.upper(): former}), item.name)
            assert getattr(kept, item.name) == parsed


def test_the_settings_that_keep_the_old_behaviour_are_those_of_the_changelog() -> None:
    """The tests would try other settings than users are told."""
    table = CHANGELOG.partition("### Upgrading from 0.1.0")[2].partition("\n\n- ")[0]
    shown = re.findall(r"^\|.*\| `([A-Z0-9_]+)=(\S+)` \|$", table, re.MULTILINE)
    assert dict(shown) == KEEPING


def test_no_metric_and_no_event_of_0_1_0_is_gone(old: dict[str, Any]) -> None:
    """Alerts and searches of a 0.1.0 installation would find nothing, without a word about it."""
    assert set(old["metrics"]) <= {family.name for family in Metrics().registry.collect()}
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "daemon").rglob("*.py"))
    assert set(old["events"]) <= set(_EVENT.findall("".join(sources)))
    assert len(old["events"]) > 10
