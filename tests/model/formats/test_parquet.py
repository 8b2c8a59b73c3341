"""The format Parquet: the process that encodes it, its version, its failures."""

from __future__ import annotations

import io
import os
import signal
import sys
from importlib.metadata import PackageNotFoundError
from typing import TYPE_CHECKING, Final
from unittest.mock import patch

import pyarrow.parquet as pq
import pytest

from payloadd.config.settings import load
from payloadd.errors import OperatorStoreError, StartError
from payloadd.model.formats import FORMATS, PARQUET, format_of, parquet
from payloadd.model.formats.configuration import open_formats
from payloadd.model.formats.parquet import Parquet
from payloadd.model.job import IdSource, Job
from tests.support.objects import bytes_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IDS: Final = IdSource().new_ids(3)
JOBS: Final = [Job(seq, job_id, b'{"a":"%d"}\n[]\n' % seq, 2) for seq, job_id in enumerate(IDS, 1)]


@pytest.fixture(scope="module")
def running() -> Iterator[Parquet]:
    """Return a format whose process runs; all tests of the module share it."""
    one = Parquet()
    one.start()
    yield one
    one.configure(None)


def settings_with(tmp_path: Path, schema: str) -> dict[str, str]:
    """Return the environment of a daemon that stores Parquet with this schema."""
    (tmp_path / "schema").write_text(schema)
    return {"OBJECT_FORMAT": "parquet", "PARQUET_SCHEMA": str(tmp_path / "schema")}


def test_an_object_is_encoded_in_another_process_with_the_same_bytes(running: Parquet) -> None:
    """A replay after a crash would store other bytes under the same key."""
    body = running.encode(JOBS)
    table = pq.read_table(io.BytesIO(bytes_of(body)))
    assert table["_id"].to_pylist() == [f"{one}-{index}" for one in IDS for index in range(2)]
    assert bytes_of(running.encode(list(JOBS))) == bytes_of(body)
    assert (body.kind.version, body.kind.same_bytes) == ("parquet-1", False)
    assert running.has_process


def test_a_process_that_has_ended_is_started_again(running: Parquet) -> None:
    """One batch that is killed for want of memory would be the last one that is stored."""
    running.encode(JOBS)
    process = running._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process._process.wait()
    assert running.encode(JOBS).misfits == {}
    assert running._process is not process


def test_a_process_that_ends_at_work_is_an_error_that_an_operator_can_fix(running: Parquet) -> None:
    """The batch would be lost, or the daemon would end."""
    running.encode(JOBS)
    assert running._process is not None
    with (
        patch.object(parquet, "request_object", side_effect=EOFError("closed")),
        pytest.raises(OperatorStoreError, match=r"ENCODER_FAILED: .* has failed .*closed"),
    ):
        running.encode(JOBS)
    assert running._process is None


def test_what_cannot_be_encoded_is_an_error_that_an_operator_can_fix(running: Parquet) -> None:
    """A defect of the encoder would drop payloads."""
    with pytest.raises(OperatorStoreError, match=r"ENCODER_FAILED: .*2 lines instead of 3"):
        running.encode([JOBS[0]._replace(payloads=3)])
    process = running._process
    running.encode(JOBS)
    assert running._process is process


@pytest.mark.parametrize(
    ("module", "reason"),
    [("tests.support.no_pyarrow", "pyarrow cannot be used"), ("no.such.module", "does not start")],
)
def test_a_process_that_does_not_start_says_why(
    module: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator would not know that pyarrow is broken or not installed."""
    monkeypatch.setattr(parquet, "_MODULE", module)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    with pytest.raises(OperatorStoreError, match=reason):
        Parquet().encode(JOBS)


def test_the_encoder_names_the_version_of_pyarrow_and_the_options(tmp_path: Path) -> None:
    """A batch that was sealed with other columns would pass for one with the same bytes."""
    one = Parquet()
    encoders = {one.encoder}
    for schema, more in (
        ("a int64\n", {}),
        ("a int32\n", {}),
        ("a int64\n_payload off\n", {}),
        ("a int64\n", {"PARQUET_SORT_BY": "a"}),
        ("a int64\n", {"KEY_TEMPLATE": "day={date}/{id}"}),
        ("a int64\n", {"PARQUET_SCHEMA": "auto"}),
    ):
        environ = settings_with(tmp_path, schema) | more
        one.configure(load(environ))
        encoders.add(one.encoder)
        other = Parquet()
        other.configure(load(environ))
        assert other.encoder == one.encoder
    assert len(encoders) == 7
    with patch.object(parquet, "version", return_value="99.0.0"):
        one.configure(load({}))
    assert one.encoder.startswith("parquet-1 pyarrow-99.0.0 options-")
    with patch.object(parquet, "version", side_effect=PackageNotFoundError):
        one.configure(None)
    assert one.encoder.startswith("parquet-1 pyarrow-none options-")


async def test_the_settings_hold_while_the_formats_are_open(tmp_path: Path) -> None:
    """Objects would have no columns, or a process would outlive the daemon."""
    settings = load(settings_with(tmp_path, "a string\n"))
    before = PARQUET.encoder
    async with open_formats(settings):
        assert format_of(settings) == "parquet"
        assert PARQUET._process is not None
        body = FORMATS["parquet"].encode(JOBS)
        assert body.misfits == {"_payload": 3}
        process = PARQUET._process
    assert process.ended
    assert PARQUET.encoder == before
    assert pq.read_table(io.BytesIO(bytes_of(body)))["a"].to_pylist()[::2] == ["1", "2", "3"]


async def test_a_broken_encoder_refuses_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon would accept payloads that it cannot store."""
    monkeypatch.setattr(parquet, "_MODULE", "no.such.module")
    with pytest.raises(StartError, match="OBJECT_FORMAT=parquet: ENCODER_FAILED"):
        async with open_formats(load({"OBJECT_FORMAT": "parquet"})):
            pass  # pragma: no cover
    async with open_formats(load({})):
        assert PARQUET._process is None
