"""Kill the daemon in front of each real S3 server, with keys that every server encodes its own way.

``test_torture.py`` does more of it with SeaweedFS alone. Run with ``--stores``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from tests.crash.plan import DaemonRun
from tests.crash.torture import torture

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.s3 import S3Server

pytestmark = [pytest.mark.stores, pytest.mark.no_cover]

_PLAN: Final = (
    DaemonRun("works", "committed, not answered"),
    DaemonRun("works", "sealed, not put"),
    DaemonRun("stores and fails", "put again, not settled"),
    DaemonRun("works", "at a random moment"),
    DaemonRun("works", "put, not settled"),
    DaemonRun("works", "while draining"),
    DaemonRun("works", "put, not settled"),
)
_FOLDER: Final = "a=b/c+d/e%41f/g h/ü/日本/i:j/k*l/= + % space ü 日本 : *"
_SETTINGS: Final = (
    {"BATCH_MAX_PAYLOADS": "20", "COMPRESSION": "gzip", "KEY_TEMPLATE": f"{_FOLDER}/{{id}}.ndjson"},
    {"BATCH_MAX_PAYLOADS": "7", "COMPRESSION": "zstd", "KEY_TEMPLATE": f"{_FOLDER} {{id}} *"},
    {"BATCH_MAX_PAYLOADS": "1", "KEY_TEMPLATE": "dt={date}/{shard}/%2F+{id}=.ndjson"},
)


@pytest.mark.parametrize("condition", ["auto", "on"])
async def test_a_real_server_has_every_payload_once_after_every_crash(
    request: pytest.FixtureRequest,
    s3_server: S3Server,
    tmp_path: Path,
    seed: int,
    condition: str,
) -> None:
    """A crash would lose acknowledged payloads or store them twice, with another S3 than AWS's."""
    if condition == "on" and request.node.callspec.params["s3_server"] == "swift":
        pytest.skip("Swift does not know If-None-Match: *, and says so with a 501")
    settings = [{**one, "S3_IF_NONE_MATCH": condition} for one in _SETTINGS]
    tally = await torture(tmp_path, s3_server, f"stores-{condition}", _PLAN, settings, seed)
    # A drain may end before the daemon is killed.
    for ending in {run.ending for run in _PLAN} - {"while draining"}:
        assert tally[ending], f"never ended {ending!r}: {tally}"
