"""A daemon of this version goes on with the journal of payloadd 0.1.0, and never the other way."""

from __future__ import annotations

import base64
import gzip
import json
import re
import sqlite3
import sys
import time
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

import pytest

from payloadd.journal.sqlite.database import Database
from tests.fixtures.version_3.journals import KEEPING, MANIFEST, WHEEL, lines, unpack
from tests.support.clients import Posts
from tests.support.commands import invoke
from tests.support.daemon import START_WITHIN, running_daemon, started
from tests.support.loopback import http_client
from tests.support.store import INTERNAL_ERROR, fake_s3
from tests.support.store_behaviours import InTurn

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemon import Daemon
    from tests.support.store import FakeS3

pytestmark = pytest.mark.no_cover

_OLD_KEY: Final = re.compile(r"/bucket/\d{4}-\d\d-\d\d/\d\d/[0-9a-f-]{36}\.ndjson(\.gz)?")
"""The path of an object by the default KEY_TEMPLATE of 0.1.0."""
RETRIED: Final = 3
"""The number of dead letters that are retried, the last ones."""
_OLD: Final = (sys.executable, "-m", "daemon")
"""The command of 0.1.0, with its wheel in PYTHONPATH."""


@pytest.mark.parametrize("name", ["killed", "alone", "gzip"])
async def test_a_journal_of_0_1_0_is_stored_once_under_its_keys(name: str, tmp_path: Path) -> None:
    """An upgrade would lose payloads, store them twice, or forget answers and dead letters."""
    manifest = MANIFEST[name]
    state = tmp_path / "payloadd-data"
    _keep_keys(unpack(name, state))
    async with fake_s3() as store:
        _keep_objects(store, manifest)
        async with running_daemon(tmp_path, store.environ) as daemon:
            await daemon.wait_until_stored(len(manifest["waiting"]))
            assert (await daemon.ready()).status_code == 200
            assert _payloads(store) == lines(manifest["waiting"])
            await _repeat(daemon, manifest["keys"])
            dead = await _retry_dead_letters(tmp_path, manifest["dead"])
            retried = [number for letter in manifest["dead"][-RETRIED:] for number in letter]
            total = len(manifest["waiting"]) + len(retried)
            await daemon.wait_until_stored(total)
            daemon.process.terminate()
            line = await daemon.drained()
    assert (line["stored"], line["journaled"], line["lost"]) == (total, 0, 0)
    assert _payloads(store) == lines([*manifest["waiting"], *retried])
    assert dead | set(manifest.get("unconfirmed", [])) <= set(store.objects)
    assert all(map(_OLD_KEY.fullmatch, store.objects)), sorted(store.objects)
    # Objects that the store had, and the journal did not know of, were not written again.
    assert not any(store.puts[path] for path in manifest.get("kept", {}))
    assert daemon.events("payloads_damaged") == []
    if name == "alone":
        assert len(store.objects) == total


async def test_0_1_0_refuses_a_journal_of_this_version(tmp_path: Path) -> None:
    """A rolled back upgrade would misread the journal, or not say why it does not start."""
    path = unpack("gzip", tmp_path / "payloadd-data")
    Database(path).close()
    before = _rows(path)
    async with started(tmp_path, {"PYTHONPATH": str(WHEEL)}, _OLD) as old:
        assert await old.wait() == 1
    reason = old.event("cannot_start")["reason"]
    assert "the journal has version 5, this payloadd knows versions up to 3" in reason
    assert _rows(path) == before


async def test_commands_leave_a_journal_of_0_1_0_as_it_is(tmp_path: Path) -> None:
    """`check` before an upgrade would upgrade the journal below the daemon that runs."""
    path = unpack("stopped", tmp_path / "payloadd-data")
    before = path.read_bytes()
    done = await invoke("check", folder=tmp_path)
    assert done.returncode == 0
    assert "version 3, which a start upgrades" in done.stdout
    done = await invoke("journal", "status", folder=tmp_path)
    assert done.returncode == 1
    assert "start the daemon once to upgrade it" in done.stderr
    assert path.read_bytes() == before


def _keep_keys(path: Path) -> None:
    """Let the Idempotency-Keys of a journal be valid for another hour."""
    with closing(sqlite3.connect(path)) as old:
        assert old.execute("PRAGMA user_version").fetchone() == (3,)
        old.execute("UPDATE answers SET expires = ?", (int(time.time()) + 3600,))
        old.commit()


def _keep_objects(store: FakeS3, manifest: dict[str, Any]) -> None:
    """Put the objects into the store that it had when 0.1.0 ended, and had not confirmed."""
    for path, kept in manifest.get("kept", {}).items():
        store.objects[path] = base64.b64decode(kept["body"])
        store.metadata[path] = kept["headers"]


def _payloads(store: FakeS3) -> Counter[bytes]:
    """Return every line of every object."""
    bodies = (
        gzip.decompress(body) if path.endswith(".gz") else body
        for path, body in store.objects.items()
    )
    return Counter(line for body in bodies for line in body.splitlines())


async def _repeat(daemon: Daemon, answers: dict[str, Any]) -> None:
    """Repeat the requests that have an Idempotency-Key; each gets its first answer."""
    async with http_client() as http:
        for key, answer in answers.items():
            headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
            # 0.1.0 did not keep what a request had, so any body is taken for the first one.
            url, body = f"{daemon.url}/v1/payloads", b'{"payloads":[0]}'
            repeated = await http.post(url, content=body, headers=headers)
            assert (repeated.status_code, repeated.json()) == (202, answer)


async def _retry_dead_letters(folder: Path, expected: list[list[int]]) -> set[str]:
    """Look at the last dead letters and retry them; returns the paths of their objects."""
    listed = await invoke("journal", "dead", "list", "--json", folder=folder)
    letters = json.loads(listed.stdout)
    assert [letter["payloads"] for letter in letters] == list(map(len, expected))
    letters = letters[-RETRIED:]
    for letter, numbers in zip(letters, expected[-RETRIED:], strict=True):
        shown = await invoke("journal", "dead", "show", letter["id"], folder=folder)
        assert Counter(shown.stdout.encode().splitlines()) == lines(numbers)
    ids = [letter["id"] for letter in letters]
    done = await invoke("journal", "dead", "retry", *ids, folder=folder)
    assert (done.returncode, done.stdout.split()[0]) == (0, str(len(ids)))
    return {f"/bucket/{letter['key']}" for letter in letters}


def _rows(path: Path) -> list[str]:
    """Return all that is in a journal, as SQL."""
    with closing(sqlite3.connect(path)) as connection:
        return [*map(str, connection.execute("PRAGMA user_version")), *connection.iterdump()]


@pytest.mark.large
async def test_the_settings_of_the_changelog_keep_the_behaviour_of_0_1_0(tmp_path: Path) -> None:
    """A setting that is said to undo a change would not."""
    compressed = {"COMPRESSION": "gzip"}
    for name in ("old", "kept", "new"):
        (tmp_path / name).mkdir()
    old = await _observe(tmp_path / "old", compressed | {"PYTHONPATH": str(WHEEL)}, _OLD)
    kept = await _observe(tmp_path / "kept", KEEPING | compressed)
    new = await _observe(tmp_path / "new", compressed)
    assert kept == old
    # Each of them tells the two versions apart.
    assert [name for name in old if new[name] == old[name]] == []


async def _observe(
    folder: Path, settings: dict[str, str], command: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return what differs by default between 0.1.0 and this version, of a daemon that is posted to.

    The first upload fails, and is repeated.
    """
    async with (
        fake_s3(InTurn((INTERNAL_ERROR, "take"))) as store,
        started(folder, store.environ | settings, command) as daemon,
    ):
        await daemon.wait_for_event("listening", START_WITHIN)
        small, large = Posts(daemon.url), Posts(daemon.url)
        await small.run([[b"1", b"2", b"3"]])
        await large.run([[b'"%s"' % (b"x" * 1_100_000)]])
        await daemon.wait_until_stored(len(small.acknowledged + large.acknowledged))
    headers = {name for kept in store.metadata.values() for name in kept}
    # Metadata of objects are new, and no setting leaves them out.
    return {
        "large": large.answers,
        "keys": {re.sub(r"[0-9a-f-]{36}|\d+", "#", path) for path in store.objects},
        "objects": [body.count(b"\n") for body in map(gzip.decompress, store.objects.values())],
        "headers": {name for name in headers if not name.startswith("x-amz-meta-")},
        "conditions": sum("if-none-match" in seen.headers for seen in store.seen),
    }
