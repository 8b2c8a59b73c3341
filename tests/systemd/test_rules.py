"""The alerts and the dashboard that the wheel brings: they parse, fire, and name real metrics."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, Final

import pytest
from prometheus_client.parser import text_string_to_metric_families

from payloadd.observe.metrics import Metrics
from payloadd.observe.state_gauges import StateGauges
from payloadd.observe.status import Status, Trouble
from tests.support.daemon import ROOT
from tests.support.readme import prose, readme_blocks
from tests.support.tools import find_tool, need_tools

if TYPE_CHECKING:
    from pathlib import Path

RULES: Final = ROOT / "systemd" / "payloadd.rules.yml"
DASHBOARD: Final = ROOT / "systemd" / "payloadd.dashboard.json"
README: Final = ROOT / "README.md"
_NAME: Final = re.compile(r"\b(?:payloadd|process)_[a-z_]+\b")
_ENDINGS: Final = ("_bucket", "_sum", "_count")


def exposition() -> str:
    """Return every metric of a daemon, those of a trouble and of temporary keys too."""
    status = Status(
        troubles={"store": Trouble("AccessDenied", "no", 0.0)}, credentials_expire_seconds=60.0
    )
    metrics = Metrics(lambda: status)
    metrics.registry.register(StateGauges(lambda: status, 100))
    metrics.requests.count(202)
    metrics.uploads.labelled("stored")
    return metrics.render().decode()


def known_names() -> set[str]:
    """Return the names of all samples."""
    return {
        sample.name
        for family in text_string_to_metric_families(exposition())
        for sample in family.samples
    }


def promtool(*arguments: str, text: str | None = None) -> str:
    """Run promtool; return its output. It must succeed."""
    need_tools("promtool")
    command = [find_tool("promtool"), *arguments]
    done = subprocess.run(command, input=text or "", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def expressions() -> list[str]:
    """Return the expressions of all panels and variables of the dashboard."""
    dashboard = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    variables: list[dict[str, Any]] = dashboard["templating"]["list"]
    return found + [one["query"] for one in variables if one["type"] == "query"]


def test_promtool_finds_no_fault_in_the_metrics() -> None:
    """Prometheus would read other metrics than the daemon means."""
    assert not promtool("check", "metrics", text=exposition()).strip()


def test_promtool_finds_no_fault_in_the_rules() -> None:
    """Prometheus would not start with the rules."""
    assert "12 rules found" in promtool("check", "rules", "--lint-fatal", str(RULES))


def test_prometheus_accepts_the_configuration_of_the_readme(tmp_path: Path) -> None:
    """An operator would have to find out how the alerts get into Prometheus."""
    (block,) = (one for one in readme_blocks("yaml") if one.heading == "Operating it")
    (tmp_path / "prometheus.yml").write_text(block.text)
    shutil.copy(RULES, tmp_path)
    assert "12 rules found" in promtool("check", "config", str(tmp_path / "prometheus.yml"))


def test_each_alert_fires_for_its_fault_and_for_no_other() -> None:
    """An operator would be woken for nothing, or not be woken."""
    promtool("test", "rules", str(ROOT / "tests" / "systemd" / "rules_test.yml"))


def test_each_alert_has_a_test() -> None:
    """A new alert might never fire."""
    alerts = set(re.findall(r"- alert: (\w+)", RULES.read_text()))
    tested = (ROOT / "tests" / "systemd" / "rules_test.yml").read_text()
    assert len(alerts) == 12
    for alert in alerts:
        assert f'alertname="{alert}"' in tested
        assert f"alertname: {alert}," in tested


@pytest.mark.parametrize("source", [RULES.read_text(), *expressions()])
def test_rules_and_dashboard_name_metrics_that_exist(source: str) -> None:
    """A panel would stay empty, or an alert would never fire, and nothing would say so."""
    prose = re.compile(r"^ *#.*|description:.*|runbook:.*", re.MULTILINE)
    named = set(_NAME.findall(prose.sub("", source)))
    assert named
    assert named <= known_names()


def test_the_dashboard_shows_every_metric_of_the_daemon() -> None:
    """A figure that nothing shows is not looked at when it matters."""
    text = "\n".join(expressions())
    own = {
        next((name.removesuffix(end) for end in _ENDINGS if name.endswith(end)), name)
        for name in known_names()
        if name.startswith("payloadd_")
    }
    missing = {name for name in own if name not in text}
    assert missing <= {"payloadd_draining", "payloadd_idempotency_keys_evicted_total"}


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    """Grafana would move them, and a change of one would move others."""
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_runbooks_point_into_the_readme() -> None:
    """An operator would look in the night for a text that is not there."""
    headings = re.split(r"^#+ (.+)$", prose(README.read_text()), flags=re.MULTILINE)
    sections = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-"): text
        for title, text in zip(headings[1::2], headings[2::2], strict=True)
    }
    runbooks = re.findall(r"runbook: 'README\.md#(\S+): \"(.+)\"'", RULES.read_text())
    assert len(runbooks) == 12
    for anchor, text in runbooks:
        assert text in sections[anchor]
