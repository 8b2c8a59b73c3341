"""The benchmark itself: it runs, and its figures hang together."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import trio

from tests.bench.__main__ import main
from tests.support import tools
from tests.support.tools import need_tools

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_a_short_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody could tell any more whether a change makes the daemon slower."""
    need_tools("nginx", "wrk")
    figures = tmp_path / "figures.json"
    options = ["--duration=1", "--connections=4", "--payloads-per-post=3", f"--json={figures}"]
    # The benchmark brings a trio run of its own, so it gets a thread of its own.
    assert await trio.to_thread.run_sync(main, options) == 0

    result: dict[str, Any] = json.loads(figures.read_text())[0]
    counts, load = result["counts"], result["load"]
    assert counts["accepted"] == counts["stored"] > 0
    assert counts["given_up"] == 0
    assert result["puts"] >= counts["stored"]
    assert (load["answers"] - load["refused"]) * 3 <= counts["accepted"]
    assert result["cpu_us"] > 0
    assert result["peak_rss"] > 2**20
    assert 0 < load["p50"] <= load["p99"]
    table = capsys.readouterr().out.splitlines()
    assert table[0].startswith("| daemon |")
    assert table[2].startswith("| payloadd |")


def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A newcomer would have to guess what to install before the benchmark runs."""
    monkeypatch.setattr(tools, "_PLACES", "/nonexistent")
    assert main([]) == 2
    assert "apt-get install nginx-light wrk" in capsys.readouterr().err
