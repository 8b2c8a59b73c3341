"""A daemon that stores Parquet: its objects, its metrics, crashes, and a change of the encoder."""

from __future__ import annotations

import io
import signal
from typing import TYPE_CHECKING, Final

import pyarrow.parquet as pq
import pytest
import trio

from tests.support.clients import post
from tests.support.commands import invoke
from tests.support.daemon import Daemon, running_daemon
from tests.support.store import FakeS3, fake_s3
from tests.support.store_behaviours import Hang

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.no_cover

SCHEMA: Final = "user int64\ntime timestamp\n"


def environment(folder: Path, schema: str = SCHEMA) -> dict[str, str]:
    """Return the settings of a daemon that stores Parquet with this schema."""
    (folder / "schema").write_text(schema)
    return {"OBJECT_FORMAT": "parquet", "PARQUET_SCHEMA": "schema", "BATCH_LINGER": "50ms"}


async def drained(daemon: Daemon) -> int:
    """Stop a daemon, and return how many payloads it has stored."""
    daemon.signal(signal.SIGTERM)
    return int((await daemon.drained())["stored"])


async def test_payloads_are_rows_and_what_does_not_fit_is_counted(tmp_path: Path) -> None:
    """Readers would find other rows, or nothing would say that values are missing."""
    async with running_daemon(tmp_path, environment(tmp_path) | {"STREAMS": "clicks"}) as daemon:
        bodies = [b'{"user":1,"time":"2026-11-27T09:30:00Z"}', b'{"user":"x"}', b"[7]"]
        await post(daemon.url, bodies)
        await post(daemon.url, [b'{"user":2}'] * 1000)
        await daemon.wait_until_stored(1003)
        metrics = await daemon.metrics()
        assert metrics['payloadd_parquet_misfits_total{column="user"}'] == 1
        assert metrics['payloadd_parquet_misfits_total{column="_payload"}'] == 1
        assert {line["column"] for line in daemon.events("parquet_misfit")} == {"user", "_payload"}
        assert await drained(daemon) == 1003
    root = tmp_path / "payloadd-data" / "objects"
    paths = list(root.rglob("*"))
    files = [path for path in paths if path.is_file()]
    assert {path.suffix for path in files} == {".parquet"}
    assert all(path.relative_to(root).as_posix().startswith("default/dt=") for path in files)
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    assert len({row["_id"] for row in rows}) == len(rows) == 1003
    assert sorted(row["_payload"] for row in rows if row["user"] != 2) == sorted(
        body.decode() for body in bodies
    )


async def test_a_batch_that_was_uploaded_before_a_change_of_the_encoder_is_not_replaced(
    tmp_path: Path,
) -> None:
    """A reader would meet other bytes in the middle of an object, and fail."""
    async with fake_s3(Hang(keeps=True)) as store:
        async with running_daemon(tmp_path, environment(tmp_path) | store.environ) as daemon:
            await post(daemon.url, [b'{"user":1}', b'{"user":2}'])
            await store.wait_until_asked(1)
            daemon.signal(signal.SIGKILL)
            await daemon.wait()
        ((path, content),) = store.objects.items()
        store.behaviour = "take"
        env = environment(tmp_path, "user int32\n_payload off\n") | store.environ
        async with running_daemon(tmp_path, env) as daemon:
            await daemon.wait_for_event("encoder_changed")
            await daemon.wait_until_stored(2)
            assert await drained(daemon) == 2
        assert [(one.method, one.status) for one in list(store.seen)[1:]] == [
            ("PUT", 412),
            ("HEAD", 200),
        ]
        assert store.objects == {path: content}
        assert "user" in pq.read_table(io.BytesIO(content)).column_names
        assert store.metadata[path]["x-amz-meta-format"] == "parquet-1"
        assert store.metadata[path]["content-type"] == "application/vnd.apache.parquet"


async def test_a_backlog_of_parquet_stays_parquet_when_the_format_changes(tmp_path: Path) -> None:
    """The object of a sealed batch would have another content under its name."""
    async with fake_s3("down") as store:
        env = environment(tmp_path) | store.environ
        async with running_daemon(tmp_path, env | {"DRAIN_TIMEOUT": "0s"}) as daemon:
            await post(daemon.url, [b'{"user":1}'])
            await drained(daemon)
        await store.end()
        async with running_daemon(
            tmp_path, {**store.environ, "PARQUET_SCHEMA": "schema"}
        ) as daemon:
            await post(daemon.url, [b'{"user":2}'])
            await daemon.wait_until_stored(2)
        await _check_kinds(store)


async def _check_kinds(store: FakeS3) -> None:
    """Check that the store has one object of each format."""
    await trio.lowlevel.checkpoint()
    by_suffix = {path.rpartition(".")[2]: body for path, body in store.objects.items()}
    assert by_suffix["ndjson"] == b'{"user":2}\n'
    assert pq.read_table(io.BytesIO(by_suffix["parquet"]))["user"].to_pylist() == [1]


async def test_an_encoder_that_is_killed_delays_a_batch_and_loses_none(tmp_path: Path) -> None:
    """A machine that is short of memory kills the largest process: this one."""
    async with running_daemon(tmp_path, environment(tmp_path)) as daemon:
        await post(daemon.url, [b'{"user":1}'])
        await daemon.wait_until_stored(1)
        children = trio.Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children")
        for child in (await children.read_text()).split():
            kill = await trio.run_process(["kill", "-9", child])
            assert kill.returncode == 0
        await post(daemon.url, [b'{"user":2}'])
        await daemon.wait_until_stored(2)
        assert await drained(daemon) == 2


async def test_check_tries_the_encoder(tmp_path: Path) -> None:
    """An operator would learn only from the first upload that pyarrow does not work."""
    done = await invoke("check", folder=tmp_path, env=environment(tmp_path))
    assert done.returncode == 0, done.stdout
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    details = {line[1]: line[2] for line in lines if len(line) > 2}
    assert details["format"].startswith("parquet-1 pyarrow-")
    assert details["format"].endswith(", 2 columns of PARQUET_SCHEMA")
    assert details["keys"].endswith(".parquet")
