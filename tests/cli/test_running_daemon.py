"""What ``payloadd check`` says of the daemon that runs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest
import trio

from payloadd.cli import check as module
from payloadd.cli.check import check
from payloadd.cli.running_daemon import status_notes, status_of_daemon
from payloadd.config.settings import load
from tests.support.commands import invoke
from tests.support.daemon import running_daemon

if TYPE_CHECKING:
    from pathlib import Path

HEALTHY: Final[dict[str, Any]] = {"process": 7, "refusal": None, "troubles": []}


async def serve(answer: bytes, stream: trio.SocketStream) -> None:
    """Read a request and send an answer."""
    await stream.receive_some(65536)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(answer)
    await stream.send_all(head + answer)
    await stream.aclose()


async def asked(answer: bytes) -> dict[str, Any] | None:
    """Return what is read from a server that gives this answer."""
    async with trio.open_nursery() as nursery:
        start = partial(trio.serve_tcp, partial(serve, answer), 0, host="127.0.0.1")
        (listener,) = await nursery.start(start)
        port = listener.socket.getsockname()[1]
        found = await status_of_daemon(load({"ADMIN_BIND": f"127.0.0.1:{port}"}))
        nursery.cancel_scope.cancel()
    return found


@pytest.mark.parametrize("answer", [b"<html>", b"[]", b"{}", b"\xff"])
async def test_another_server_on_the_address_is_ignored(answer: bytes) -> None:
    """`check` would fail, or show troubles of another program."""
    assert await asked(answer) is None
    assert await asked(b'{"process": 7, "refusal": null, "troubles": []}') == HEALTHY


async def test_no_daemon_is_asked_without_an_admin_address() -> None:
    """`check` would fail where ADMIN_BIND is off, or where no daemon runs."""
    assert await status_of_daemon(load({"ADMIN_BIND": "off"})) is None
    assert await status_of_daemon(load({"ADMIN_BIND": "unix:/nowhere/socket"})) is None


def test_a_refusal_and_troubles_are_notes() -> None:
    """An operator whose disk is full would read that all is well."""
    disk = {"part": "journal", "code": "SQLITE_FULL", "reason": "disk is full"}
    store = {"part": "store", "code": "NoSuchBucket", "reason": "NoSuchBucket: HTTP 404"}
    refusal = {"code": "DISK_ERROR", "detail": "the journal cannot be written"}
    assert status_notes(HEALTHY) == []
    assert status_notes(HEALTHY | {"refusal": refusal, "troubles": [disk, store]}) == [
        "refuses requests: DISK_ERROR, the journal cannot be written",
        "trouble of the journal: SQLITE_FULL: disk is full",
        "trouble of the store: NoSuchBucket: HTTP 404",
    ]


async def test_check_asks_the_daemon_that_uses_the_journal(tmp_path: Path) -> None:
    """An operator would see troubles of another daemon, or none of this one."""
    admin = f"unix:{tmp_path}/admin"
    async with running_daemon(tmp_path, {"ADMIN_BIND": admin}):
        same = await invoke("check", folder=tmp_path, env={"ADMIN_BIND": admin})
        env = {"ADMIN_BIND": admin, "STATE_DIR": str(tmp_path / "other")}
        other = await invoke("check", folder=tmp_path, env=env)
    assert "ok      daemon       accepts requests\n" in same.stdout
    assert "ok      journal" in other.stdout
    assert "  daemon  " not in other.stdout


async def test_a_daemon_in_trouble_is_no_failure_of_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that tries new settings before a restart would never restart."""

    async def troubled(_settings: object) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        trouble = {"part": "store", "code": "X", "reason": "X: no"}
        return HEALTHY | {"troubles": [trouble]}

    monkeypatch.setattr(module, "status_of_daemon", troubled)
    settings = {"DURABILITY": "memory", "STORE_URL": f"file://{tmp_path}"}
    lines: list[str] = []
    assert await check(load(settings), lines.append)
    assert "note    daemon       trouble of the store: X: no" in lines
