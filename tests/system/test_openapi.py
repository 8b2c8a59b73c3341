"""Schemathesis compares the daemon with its own description, on both ways in.

It makes correct and wrong requests from ``/openapi.json`` and checks each answer: status, type,
schema, headers, refusals of wrong requests, other methods, requests without a token. Its stateful
phase follows the links, which repeat requests with the same Idempotency-Key.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests.support.daemon import PYTHONPATH, ROOT, START_WITHIN, started
from tests.support.fuzz import SECONDS

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = [pytest.mark.large, pytest.mark.no_cover]

_TOKEN: Final = "the-token-of-schemathesis"
_CONFIG: Final = ROOT / "tests" / "support" / "schemathesis.toml"
_PHASES: Final = ("Examples", "Coverage", "Fuzzing")
_EXAMPLES: Final = 8
"""Random requests of each operation in each phase; the coverage phase makes some 500 besides."""


def _options(config: pytest.Config) -> list[str]:
    """Return the options for a run: always the same requests, or random ones for minutes."""
    if config.getoption("--fuzz") != "long":
        return [f"--max-examples={_EXAMPLES}", "--generation-deterministic"]
    seed = config.getoption("--fuzz-seed")
    seed = random.SystemRandom().randrange(2**32) if seed is None else seed
    seconds = round(SECONDS["long"] / 2)  # two ways in
    return [f"--max-time={seconds}", f"--seed={seed}", "--generation-database=none"]


async def _schemathesis(url: str, folder: Path, options: Sequence[str]) -> str:
    """Run schemathesis against an address; returns its report. AssertionError if it has found any.

    All checks are on but those that ``schemathesis.toml`` names, with the reasons.
    """
    command = [str(Path(sys.executable).with_name("schemathesis")), f"--config-file={_CONFIG}"]
    header = f"Authorization: Bearer {_TOKEN}"
    done = await trio.run_process(
        [*command, "run", f"{url}/openapi.json", "--no-color", f"--header={header}", *options],
        check=False,
        stdin=b"",
        capture_stdout=True,
        capture_stderr=True,
        cwd=folder,
        env={
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(folder),
            "PYTHONPATH": PYTHONPATH,
            "SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks",
        },
    )
    report = done.stdout.decode()
    assert done.returncode == 0, report + done.stderr.decode()
    return report


def _passed(report: str) -> list[str]:
    """Return the phases in which requests were made, and all answers were right."""
    return [phase for phase in (*_PHASES, "Stateful") if f"✅  {phase} (in" in report]


@pytest.mark.parametrize("module", ["payloadd", "tests.support.hypercorn_only"])
async def test_the_daemon_answers_as_it_describes_itself(
    tmp_path: Path, module: str, pytestconfig: pytest.Config
) -> None:
    """A client that is generated from the description would send, or expect, the wrong thing."""
    tokens = trio.Path(tmp_path / "tokens")
    await tokens.write_text(f"test:{hashlib.sha256(_TOKEN.encode()).hexdigest()}\n")
    # Few payloads, so that requests with one too many are made.
    env = {"AUTH_TOKENS": str(tokens), "MAX_PAYLOADS": "20", "STREAMS": "clicks"}
    command = (sys.executable, "-m", module)
    async with started(tmp_path, env, command) as daemon:
        await daemon.wait_for_event("listening", START_WITHIN)
        report = await _schemathesis(daemon.url, tmp_path, _options(pytestconfig))
        assert _passed(report) == [*_PHASES, "Stateful"], report
        assert "API Links:    0 covered" not in report
        if module == "payloadd":
            few = ["--max-examples=2", "--generation-deterministic"]
            report = await _schemathesis(daemon.admin_url, tmp_path, few)
            assert _passed(report)
        assert daemon.events("request_failed") == []
