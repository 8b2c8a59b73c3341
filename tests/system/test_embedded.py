"""The daemon without settings: no S3, files in the working folder."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

import pytest

from payloadd.config import settings as config
from payloadd.config.parsers import FileUrl
from tests.support.clients import make_payload, post, seeded
from tests.support.daemon import running_daemon, started
from tests.support.loopback import http_client
from tests.support.store import fake_s3

if TYPE_CHECKING:
    from pathlib import Path

SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


def objects(folder: Path) -> list[bytes]:
    """Return the contents of all objects in the default folder, sorted."""
    root = folder / "payloadd-data" / "objects"
    return sorted(path.read_bytes() for path in root.rglob("*") if path.is_file())


def test_the_daemon_runs_without_settings() -> None:
    """The first command of the README would fail."""
    settings = config.load({})
    assert [str(address) for address in settings.bind] == ["127.0.0.1:8080"]
    assert str(settings.admin_bind) == "127.0.0.1:8081"
    assert isinstance(settings.store_url, FileUrl)


@SIGNALS
async def test_payloads_become_files_and_a_signal_drains(tmp_path: Path, number: int) -> None:
    """A restart would lose payloads, or change their bytes."""
    rng = seeded(1)
    payloads = [make_payload(index, rng) for index in range(50)]
    async with running_daemon(tmp_path) as daemon:
        await post(daemon.url, payloads[:1])
        await post(daemon.url, payloads[1:])
        daemon.signal(number)
        line = await daemon.drained()
        assert daemon.process.returncode == 0
    assert (line["stored"], line["journaled"], line["lost"]) == (50, 0, 0)
    stored = b"".join(objects(tmp_path)).splitlines(keepends=True)
    assert sorted(stored) == sorted(payload + b"\n" for payload in payloads)


async def test_an_idle_daemon_drains_immediately(tmp_path: Path) -> None:
    """A restart of an idle daemon would be slow or look like a failure."""
    async with running_daemon(tmp_path) as daemon:
        daemon.signal(signal.SIGTERM)
        line = await daemon.drained(within=60)
        assert daemon.process.returncode == 0
    assert (line["stored"], line["journaled"], line["lost"]) == (0, 0, 0)


async def test_the_admin_address_can_be_off(tmp_path: Path) -> None:
    """An operator could not run the daemon with a single open port."""
    async with running_daemon(tmp_path, {"ADMIN_BIND": "off"}) as daemon:
        assert daemon.event("listening")["admin"] is None
        async with http_client() as client:
            assert (await client.get(f"{daemon.url}/healthz")).status_code == 200
        daemon.signal(signal.SIGTERM)
        assert await daemon.wait() == 0


async def test_memory_durability_is_logged_as_a_warning(tmp_path: Path) -> None:
    """An operator would not know that a crash loses payloads."""
    async with running_daemon(tmp_path, {"DURABILITY": "memory"}) as daemon:
        assert daemon.event("durability_memory")["level"] == "warning"
        assert not daemon.events("journal_left_alone")
    async with running_daemon(tmp_path) as daemon:
        assert not daemon.events("durability_memory")


async def test_memory_durability_warns_about_a_journal_with_payloads(tmp_path: Path) -> None:
    """Acknowledged payloads would stay in a journal that no daemon reads."""
    async with fake_s3("hang") as store:
        env = {**store.environ, "DRAIN_TIMEOUT": "0s"}
        async with running_daemon(tmp_path, env) as daemon:
            await post(daemon.url, [b"1", b"2"])
            daemon.signal(signal.SIGTERM)
            assert (await daemon.drained())["journaled"] == 2
    async with running_daemon(tmp_path, {"DURABILITY": "memory"}) as daemon:
        line = daemon.event("journal_left_alone")
        assert (line["level"], line["payloads"]) == ("warning", 2)
    async with running_daemon(tmp_path) as daemon:
        await daemon.wait_until_stored(2)


@SIGNALS
@pytest.mark.parametrize(
    ("durability", "status", "journaled", "lost"), [("disk", 0, 3, 0), ("memory", 75, 0, 3)]
)
async def test_a_second_signal_stops_immediately(
    tmp_path: Path, number: int, durability: str, status: int, journaled: int, lost: int
) -> None:
    """An operator could not end a daemon whose store hangs, or would lose payloads."""
    async with fake_s3("hang") as store:
        hanging = {"DRAIN_TIMEOUT": "1h", "UPLOAD_TIMEOUT": "1h", "DURABILITY": durability}
        env = {**store.environ, **hanging}
        async with running_daemon(tmp_path, env) as daemon:
            await post(daemon.url, [b"1", b"2", b"3"])
            await store.wait_until_asked(1)
            daemon.signal(number)
            await daemon.wait_for_event("draining")
            daemon.signal(number)
            line = await daemon.drained(within=60)
    assert daemon.process.returncode == status
    assert (line["stored"], line["journaled"], line["lost"]) == (0, journaled, lost)


async def test_an_address_in_use_is_one_log_line(tmp_path: Path) -> None:
    """An operator would have to find the used port in a traceback."""
    async with running_daemon(tmp_path) as first:
        address = first.event("listening")["public"][0]
        env = {"BIND": address, "STATE_DIR": str(tmp_path / "second")}
        async with started(tmp_path, env) as second:
            assert await second.wait(within=60) == 1
            text = second.output.decode()
    assert "Traceback" not in text
    assert [line for line in text.splitlines() if address in line], text


BUG = """
import sys
from payloadd.storage.file import FileStore
async def put(self, key, body, members, *, repeat):
    raise ZeroDivisionError("a bug")
FileStore.put = put
from payloadd.cli.main import main
main()
"""


async def test_a_bug_in_the_pipeline_ends_the_process(tmp_path: Path) -> None:
    """The daemon would answer 202 while no worker stores payloads."""
    script = tmp_path / "bug.py"
    script.write_text(BUG)
    async with started(tmp_path, command=[sys.executable, str(script)]) as daemon:
        await daemon.wait_for_event("listening")
        await post(daemon.url, [b"1"])
        assert await daemon.wait(within=60) == 1
    assert "ZeroDivisionError" in daemon.output.decode()
