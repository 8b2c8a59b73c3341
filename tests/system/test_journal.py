"""``payloadd journal`` while the daemon runs, and after it has stopped."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio

from payloadd.journal.sqlite.database import Database
from payloadd.journal.sqlite.lock import lock
from tests.support.clients import post
from tests.support.commands import invoke
from tests.support.daemon import Daemon, environment, run_command, running_daemon, started
from tests.support.rights import bound_by_permissions
from tests.support.store import FakeS3, Refusal, fake_s3

if TYPE_CHECKING:
    from pathlib import Path

REFUSED: Final = Refusal(400, "EntityTooLarge")
NO_ID: Final = "01900000-0000-7000-8000-000000000000"


async def _journal(folder: Path, *arguments: str, status: int = 0) -> str:
    """Run ``payloadd journal ARGUMENTS``; returns its output, or its errors if it fails."""
    done = await invoke("journal", *arguments, folder=folder)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if status == 0 else done.stderr


async def _status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await _journal(folder, "status", "--json"))
    return found


async def _dead(folder: Path) -> list[dict[str, Any]]:
    letters: list[dict[str, Any]] = json.loads(await _journal(folder, "dead", "list", "--json"))
    return letters


async def _bury(daemon: Daemon, store: FakeS3, folder: Path, payloads: list[bytes]) -> None:
    """Post payloads that the store refuses for good, one object each."""
    store.begin(REFUSED)
    await post(daemon.url, payloads)
    await _until(folder, dead_letters=len(payloads))
    await store.end()


async def _until(folder: Path, **expected: int) -> dict[str, Any]:
    """Poll the status of the journal until it has the expected values; returns it."""
    with trio.fail_after(60):
        while True:
            found = await _status(folder)
            if all(found[name] == value for name, value in expected.items()):
                return found


async def test_dead_letters_of_a_running_daemon(tmp_path: Path) -> None:
    """Payloads that S3 refuses for good would be lost, or could not be retried."""
    alone = {"BATCH_MAX_PAYLOADS": "1"}
    async with fake_s3() as store, running_daemon(tmp_path, store.environ | alone) as daemon:
        await _bury(daemon, store, tmp_path, [b'"a"', b'{"b": 2}', b"3"])
        assert (await daemon.metrics())["payloadd_payloads_dead_total"] == 3
        line = await daemon.wait_for_event("payloads_dead")
        assert (line["level"], line["code"]) == ("error", "EntityTooLarge")

        letters = await _dead(tmp_path)
        assert [letter["code"] for letter in letters] == ["EntityTooLarge"] * 3
        first, second, third = (letter["id"] for letter in letters)
        listed = await _journal(tmp_path, "dead", "list")
        assert all(id_ in listed for id_ in (first, second, third))
        assert "EntityTooLarge" in listed
        assert await _journal(tmp_path, "dead", "show", second) == '{"b": 2}\n'

        assert "1 dead letters dropped" in await _journal(tmp_path, "dead", "drop", third)
        assert "within a second" in await _journal(tmp_path, "dead", "retry", first)
        await daemon.wait_until_stored(1)
        await _journal(tmp_path, "dead", "retry")
        await daemon.wait_until_stored(2)
        assert await _dead(tmp_path) == []
        daemon.signal(signal.SIGTERM)
        line = await daemon.drained()
    assert (line["stored"], line["journaled"], line["lost"]) == (2, 0, 0)
    assert store.payloads() == [b'"a"', b'{"b": 2}']


async def test_control_characters_of_payloads_are_escaped_on_a_terminal(tmp_path: Path) -> None:
    """A payload could change what the operator's terminal shows."""
    payload = '"a\x9b2Jb\u202ec ü"'
    async with fake_s3() as store, running_daemon(tmp_path, store.environ) as daemon:
        await _bury(daemon, store, tmp_path, [payload.encode()])
        (letter,) = await _dead(tmp_path)
        command = ("journal", "dead", "show", letter["id"])
        assert (await invoke(*command, folder=tmp_path)).stdout == payload + "\n"
        ours, terminal = os.openpty()
        try:
            await trio.run_process(
                [sys.executable, "-m", "payloadd", *command],
                stdin=b"",
                stdout=terminal,
                cwd=tmp_path,
                env=environment(tmp_path),
            )
            shown = os.read(ours, 10_000).decode().rstrip()
        finally:
            os.close(ours)
            os.close(terminal)
    assert shown == r'"a\u009b2Jb\u202ec ü"'
    assert json.loads(shown) == json.loads(payload)


async def test_dead_letters_of_a_stopped_daemon(tmp_path: Path) -> None:
    """A retry requested while the daemon is stopped would be lost."""
    async with fake_s3() as store:
        async with running_daemon(tmp_path, store.environ) as daemon:
            await _bury(daemon, store, tmp_path, [b"1"])
            daemon.signal(signal.SIGTERM)
            line = await daemon.drained()
        assert daemon.process.returncode == 0
        assert (line["stored"], line["journaled"], line["lost"]) == (0, 0, 0)
        assert "when the daemon is started" in await _journal(tmp_path, "dead", "retry")
        async with running_daemon(tmp_path, store.environ) as daemon:
            await daemon.wait_until_stored(1)
    assert store.payloads() == [b"1"]


async def test_the_status_shows_the_backlog_and_its_age(tmp_path: Path) -> None:
    """An operator could not see how large and how old the backlog is."""
    async with fake_s3("hang") as store:
        env = {**store.environ, "DRAIN_TIMEOUT": "0s", "BATCH_MAX_PAYLOADS": "10"}
        async with running_daemon(tmp_path, env) as daemon:
            await post(daemon.url, [b"%d" % number for number in range(20)])
            found = await _until(tmp_path, sealed_batches=2)
            assert (found["process"], found["payloads"], found["jobs"]) == (daemon.pid, 20, 2)
            assert found["bytes"] > 0
            assert found["oldest_seconds"] >= 0
            text = await _journal(tmp_path, "status")
            assert f"process {daemon.pid}" in text
            daemon.signal(signal.SIGTERM)
            assert (await daemon.drained())["journaled"] == 20
        assert "not running" in await _journal(tmp_path, "status")
        assert (await _status(tmp_path))["process"] is None


async def test_commands_for_unknown_dead_letters_fail(tmp_path: Path) -> None:
    """An operator would rely on a retry that did not happen, or read a traceback."""
    missing = await _journal(tmp_path, "status", status=1)
    assert f"no journal in {tmp_path / 'payloadd-data'}; is STATE_DIR" in missing
    async with running_daemon(tmp_path):
        pass
    for verb in ("show", "retry", "drop"):
        assert NO_ID in await _journal(tmp_path, "dead", verb, NO_ID, status=1)
    assert await _dead(tmp_path) == []


@pytest.mark.parametrize("name", ["", "journal.lock", "journal.db"])
async def test_a_journal_without_permission_is_one_line(tmp_path: Path, name: str) -> None:
    """A user that forgets `sudo` would read a traceback."""
    prefix = bound_by_permissions(tmp_path)
    state = tmp_path / "state"
    os.close(lock(state))
    Database(state / "journal.db").close()
    (state / name).chmod(0)
    env = {"STATE_DIR": str(state)}
    done = await run_command("journal", "status", folder=tmp_path, env=env, prefix=prefix)
    state.chmod(0o700)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert str(state) in line


@pytest.mark.parametrize("verb", [["status"], ["dead", "list"]])
async def test_wrong_settings_have_the_exit_status_of_serve(
    tmp_path: Path, verb: list[str]
) -> None:
    """A script could not tell a wrong setting from a damaged journal."""
    env = {"MAX_WORKERS": "none", "DRAIN_TIMEOUT": "soon", "LOG_FORMAT": "text"}
    done = await invoke("journal", *verb, folder=tmp_path, env=env)
    assert done.returncode == 78
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("payloadd: ") for line in lines)


def _damage(state: Path) -> None:
    """Change one byte of the payload ``"b"`` in the journal."""
    path = state / "journal.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = path.read_bytes()
    # Once in its row, and perhaps in a free page that had its block.
    assert b'"bbbbbb"' in content
    path.write_bytes(content.replace(b'"bbbbbb"', b'"bbbcbb"'))


async def test_damage_is_found_kept_and_dropped(tmp_path: Path) -> None:
    """A payload would be stored with wrong bytes, or be missing without a log line."""
    state = tmp_path / "payloadd-data"
    async with fake_s3("hang") as store:
        env = {**store.environ, "DRAIN_TIMEOUT": "0s"}
        async with running_daemon(tmp_path, env) as daemon:
            for payload in (b'"a"', b'"bbbbbb"', b'"c"'):
                await post(daemon.url, [payload])
            assert await _journal(tmp_path, "verify") == "no damage\n"
            daemon.signal(signal.SIGTERM)
            await daemon.drained()
        _damage(state)
        done = await run_command("journal", "verify", folder=tmp_path)
        assert (done.returncode, done.stderr) == (1, "")
        assert "does not match its checksum" in done.stdout
        assert "1 pieces of damage" in done.stdout
        checked = await invoke("check", folder=tmp_path)
        assert checked.returncode == 78
        assert "does not match its checksum" in checked.stdout
        await store.end()
        async with running_daemon(tmp_path, store.environ) as daemon:
            await daemon.wait_until_stored(2)
            found = await daemon.wait_for_event("payloads_damaged")
            assert (found["level"], found["table"], found["payloads"]) == ("error", "jobs", 1)
            assert (await daemon.metrics())["payloadd_payloads_dead_total"] == 1
            assert (await daemon.ready()).status_code == 200
            (letter,) = await _dead(tmp_path)
            assert (letter["code"], letter["id"]) == ("DAMAGED", found["id"])
            assert (await _status(tmp_path))["damaged"] == 1
            assert await _journal(tmp_path, "dead", "show", letter["id"]) == '"bbbcbb"\n'
            refused = await _journal(tmp_path, "dead", "retry", letter["id"], status=1)
            assert "cannot be tried again" in refused
            known = await invoke("journal", "verify", "--json", folder=tmp_path)
            assert known.returncode == 1
            (one,) = json.loads(known.stdout)
            assert (one["table"], one["id"]) == ("dead", letter["id"])
            await _journal(tmp_path, "dead", "drop", letter["id"])
            # The batch is settled by a commit after its upload; another process can only poll.
            with trio.fail_after(60):
                while (await _status(tmp_path))["jobs"]:  # noqa: ASYNC110
                    await trio.sleep(0.1)
            assert await _journal(tmp_path, "verify", "--json") == "[]\n"
            daemon.signal(signal.SIGTERM)
            line = await daemon.drained()
        assert (line["stored"], line["journaled"], line["lost"]) == (2, 0, 0)
        assert len(daemon.events("payloads_damaged")) == 1
    assert store.payloads() == [b'"a"', b'"c"']


async def test_the_refused_start_on_an_unreadable_journal_names_verify(tmp_path: Path) -> None:
    """An operator would read a traceback, or the daemon would start with an empty journal."""
    state = tmp_path / "payloadd-data"
    async with running_daemon(tmp_path) as daemon:
        daemon.signal(signal.SIGTERM)
        await daemon.drained()
    with (state / "journal.db").open("r+b") as file:
        file.write(bytes(4096))
    verified = await run_command("journal", "verify", folder=tmp_path)
    assert verified.returncode == 1
    assert "Traceback" not in verified.stderr
    async with started(tmp_path) as daemon:
        assert await daemon.wait() == 1
    assert "payloadd journal verify" in daemon.event("cannot_start")["reason"]
