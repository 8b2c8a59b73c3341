"""``payloadd send`` against a real daemon: formats, second runs, refusals, interruption."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import trio
from click.testing import CliRunner

from payloadd.cli.send import send
from tests.support.daemon import environment, run_command, running_daemon

if TYPE_CHECKING:
    from pathlib import Path


async def test_files_of_all_kinds_are_stored_once(tmp_path: Path) -> None:
    """A second run must store nothing, and a changed file must not be taken for the old one."""
    (tmp_path / "a.ndjson").write_text("".join(f'{{"a": {n}}}\n' for n in range(25_000)))
    (tmp_path / "b.json").write_text(json.dumps([{"b": n} for n in range(100)], indent=2))
    (tmp_path / "c.gz").write_bytes(gzip.compress(b'{"c": 1}\n{"c": 2}'))
    (tmp_path / "token").write_text("secret\n")
    async with running_daemon(tmp_path, {"BATCH_MAX_PAYLOADS": "10000"}) as daemon:
        command = ["send", "--url", daemon.url, "--token-file", "token"]
        files = ["a.ndjson", "b.json", "c.gz"]
        for _ in range(2):
            done = await run_command(*command, *files, folder=tmp_path)
            assert (done.returncode, done.stdout) == (0, "accepted 25,102 payloads\n"), done.stderr
        (tmp_path / "c.gz").write_bytes(gzip.compress(b'{"c": 3}'))
        done = await run_command(*command, "c.gz", folder=tmp_path)
        assert done.returncode == 0, done.stderr

        (tmp_path / "bad").write_text('{"d": 1}\n{"d": \n')
        done = await run_command(*command, "--parallel", "1", "c.gz", "bad", folder=tmp_path)
        assert (done.returncode, done.stdout) == (1, "accepted 1 payloads\n")
        refusal, first, following = done.stderr.splitlines()
        assert "bad, lines 1 to 2: 400 MALFORMED: line 2" in refusal
        assert first == "payloadd send: first line that was not accepted: 1 of bad"
        assert following == (
            f"payloadd send: go on with: payloadd send --url {daemon.url} --token-file token"
            " --parallel 1 bad"
        )
        daemon.signal(signal.SIGTERM)
        await daemon.drained()
    objects = (tmp_path / "payloadd-data" / "objects").rglob("*.ndjson")
    stored = [json.loads(line) for one in objects for line in one.read_bytes().splitlines()]
    assert sorted(one["a"] for one in stored if "a" in one) == list(range(25_000))
    assert sorted(one["b"] for one in stored if "b" in one) == list(range(100))
    assert sorted(one["c"] for one in stored if "c" in one) == [1, 2, 3]
    assert not any("d" in one for one in stored)


async def test_an_interrupted_run_says_where_to_go_on(tmp_path: Path) -> None:
    """The standard input stays open: the command waits for more lines when it is interrupted."""
    socket = f"unix:{tmp_path}/socket"
    async with running_daemon(tmp_path, {"BIND": socket, "BATCH_MAX_PAYLOADS": "1000"}) as daemon:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "payloadd", "send", "--url", socket, "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env=environment(tmp_path),
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        line = b'{"x": "' + b"y" * 1000 + b'"}\n'
        await process.stdin.send_all(line * 2000)
        with trio.fail_after(60):
            while (await daemon.metrics())["payloadd_payloads_accepted_total"] < 1000:  # noqa: ASYNC110
                await trio.sleep(0.05)
        process.send_signal(signal.SIGINT)
        with trio.fail_after(60):
            assert await process.wait() == 1
            output = b"".join([block async for block in process.stdout]).decode()
            errors = b"".join([block async for block in process.stderr]).decode()
        await process.stdin.aclose()
        await process.stdout.aclose()
        await process.stderr.aclose()
        accepted = int(output.removeprefix("accepted ").split()[0].replace(",", ""))
        assert accepted >= 1000
        assert errors.splitlines()[0] == "payloadd send: not all was accepted: interrupted"
        assert f"--url {socket} --from-line {accepted + 1} -" in errors


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["missing"], "missing: No such file or directory"),
        (["file", "./file"], "a file is named twice"),
        (["--url", "ftp://x", "file"], "allowed is http://host[:port], https://host[:port]"),
        (["--url", "unix:", "file"], "unix:/path"),
        (["--stream", "a/b", "file"], "'a/b' is no name: 1 to 63 of a-z"),
        (["--give-up-after", "soon", "file"], "'soon' is not allowed; allowed is"),
        (["--token-file", "file", "file"], "must have one token and nothing else"),
        (["--token-file", "none", "file"], "none: No such file or directory"),
        (["--from-line", "0", "file"], "0 is not in the range x>=1"),
        ([], "Missing argument"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent then."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("1\n2\n")
    done = CliRunner().invoke(send, arguments)
    assert done.exit_code == 2
    assert reason in " ".join(done.output.split())
