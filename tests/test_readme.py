"""README.md is complete: every trouble, every 503 and every alert is explained for an operator."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from payloadd.config import settings as config
from payloadd.exit_status import ExitStatus
from payloadd.ingress.problem import KINDS
from payloadd.observe import advice
from tests.support.readme import prose, readme_blocks

ROOT: Final = Path(__file__).parents[1]
README: Final = prose((ROOT / "README.md").read_text(encoding="utf-8"))
FAMILIES: Final = {
    "ENOSPC": "and others that begin with `E`",
    "ConnectError": "and others that end in `Error` or `Timeout`",
    "ReadTimeout": "and others that end in `Error` or `Timeout`",
    "HTTP503": "and other `HTTP5…`",
    "KMS.NotFoundException": "and other `KMS.…`",
}
"""Codes that no table lists: an example of each pattern, and the words for all of them."""


def section(heading: str) -> str:
    """Return the text under a heading, up to the next one."""
    title = re.escape(heading)
    found = re.search(rf"^#+ {title}\n(.*?)(?=^#+ |\Z)", README, re.MULTILINE | re.DOTALL)
    assert found, f"README.md has no heading {heading!r}"
    return found[1]


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the rows of all tables under a heading."""
    lines = section(heading).splitlines()
    found = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    assert found
    return found


def quoted(text: str) -> set[str]:
    """Return the words in backquotes."""
    return set(re.findall(r"`([^`]+)`", text))


@pytest.mark.parametrize("code", sorted(advice._STORE))
def test_every_trouble_of_the_store_is_explained(code: str) -> None:
    """An operator would find the code of the trouble nowhere."""
    (row,) = [row for row in rows("Troubles") if code in quoted(row[0])]
    assert all(len(cell) > 3 for cell in row)


def test_every_code_in_the_source_is_explained() -> None:
    """A part that is new would have troubles of which the README says nothing."""
    raised = re.compile(r'(?:Operator|Transient)StoreError\(\s*"(\w+)"')
    sources = [path.read_text() for path in (ROOT / "daemon" / "payloadd").rglob("*.py")]
    codes = {code for source in sources for code in raised.findall(source)}
    assert "ENCODER_FAILED" in codes
    assert codes <= {code for row in rows("Troubles") for code in quoted(row[0])}


@pytest.mark.parametrize("code", FAMILIES)
def test_codes_that_follow_a_pattern_are_explained(code: str) -> None:
    """The same for errors of the network, of a folder and of KMS."""
    assert any(pattern.fullmatch(code) for pattern, _ in advice._STORE_PATTERNS)
    assert any(FAMILIES[code] in row[0] for row in rows("Troubles"))


def test_every_other_part_that_has_troubles_is_explained() -> None:
    """A trouble of the journal would not be found."""
    first = "\n".join(row[0] for row in rows("Troubles"))
    sources = [path.read_text() for path in (ROOT / "daemon" / "payloadd").rglob("*.py")]
    parts = {
        part
        for source in sources
        if "health.report(" in source
        for part in re.findall(r'_PART: Final = "(\w+)"|health\.report\(\s*"(\w+)"', source)
    }
    names = {one or other for one, other in parts} - {"store"}
    assert names >= {"journal", "journal_read", "journal_data"}
    assert names <= quoted(first)
    assert set(advice._JOURNAL) | {"PAYLOADS_MISSING"} <= quoted(first)


def test_every_503_is_explained() -> None:
    """Clients would be refused, and nothing would say until when."""
    unavailable = {code for code, kind in KINDS.items() if kind.status == 503}
    symptoms = [row[0] for row in rows("Answers 503")]
    assert {code for one in symptoms for code in quoted(one)} >= unavailable
    posting = section("Posting")
    missing = {code for code in KINDS if f"`{code}`" not in posting} - {"STARTING"}
    assert not missing, "the table of the errors of a POST"


def test_every_alert_is_explained() -> None:
    """An operator would be woken by a name that the README does not have."""
    rules = (ROOT / "systemd" / "payloadd.rules.yml").read_text()
    alerts = set(re.findall(r"- alert: (\w+)", rules))
    assert alerts == {name for row in rows("Alerts")[1:] for name in quoted(row[0])}


def test_every_warning_and_error_of_the_log_is_explained() -> None:
    """`journalctl -u payloadd -p warning` would show a line that nothing explains."""
    call = re.compile(r'log\.(?:warning|error|critical|exception)\(\s*"([a-z_0-9]+)"')
    sources = [path.read_text() for path in (ROOT / "daemon" / "payloadd").rglob("*.py")]
    events = {event for source in sources for event in call.findall(source)}
    assert len(events) > 20
    assert events <= quoted(
        section("The log") + section("Troubleshooting") + section("Answers 503")
    )


def test_every_exit_status_is_explained() -> None:
    """A unit that ends would show a number without a meaning."""
    statuses = {row[0] for row in rows("The log") if row[0].isdigit()}
    assert statuses == {str(int(one)) for one in ExitStatus} | {"2"}


def test_the_lines_for_kubernetes_fit_the_daemon() -> None:
    """Kubernetes would kill the daemon in the middle of a drain, or send it nothing."""
    (block,) = (one for one in readme_blocks("yaml") if one.heading == "Containers")
    manifest: dict[str, Any] = yaml.safe_load(block.text)
    pod = manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environ = {one["name"]: one["value"] for one in container["env"]}
    settings = config.load(environ)
    drain = settings.drain_delay + settings.request_timeout + settings.drain_timeout + 15
    assert pod["terminationGracePeriodSeconds"] >= drain
    assert settings.drain_delay > container["readinessProbe"]["periodSeconds"]
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": 8081}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": 8081}
    recipe = (ROOT / "systemd" / "Containerfile").read_text()
    assert f"USER {pod['securityContext']['fsGroup']}" in recipe
    assert f"VOLUME {container['volumeMounts'][0]['mountPath']}\n" in recipe
    (claim,) = manifest["spec"]["volumeClaimTemplates"]
    storage = claim["spec"]["resources"]["requests"]["storage"]
    assert storage == f"{2 * settings.journal_max_bytes >> 30}Gi"
