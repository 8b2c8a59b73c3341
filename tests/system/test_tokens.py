"""Tokens of a running daemon: made, checked, read again, and never shown."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
import trio

from tests.support.daemon import run_command, running_daemon
from tests.support.loopback import http_client

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.daemon import Daemon

BODY = b'{"payloads":[1]}'


async def new_token(folder: Path, *arguments: str) -> tuple[str, str]:
    """Return a token of ``payloadd token``, and its line."""
    done = await run_command("token", *arguments, folder=folder)
    assert done.returncode == 0, done.stderr
    token, line = (text.split()[1] for text in done.stdout.splitlines())
    return token, line


async def status(daemon: Daemon, token: str | None, path: str = "/v1/payloads") -> int:
    """Return the status of a POST with a token."""
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    async with http_client() as client:
        answer = await client.post(daemon.url + path, content=BODY, headers=headers)
    return answer.status_code


def bytes_in(folder: Path) -> bytes:
    """Return the bytes of all files below a folder."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


async def reload(daemon: Daemon, event: str) -> None:
    """Send SIGHUP, and wait for a further event of the log."""
    before = len(daemon.events(event))
    daemon.signal(signal.SIGHUP)
    with trio.fail_after(60):
        while len(daemon.events(event)) == before:  # noqa: ASYNC110 - a log can only be polled
            await trio.sleep(0.01)


async def test_the_tokens_are_read_again_under_load(tmp_path: Path) -> None:
    """A token could be given or taken back only by a restart, or a reload would refuse clients."""
    first, first_line = await new_token(tmp_path, "first")
    second, second_line = await new_token(tmp_path, "second", "--streams", "clicks,errors")
    third, third_line = await new_token(tmp_path, "third")
    file = tmp_path / "tokens"
    file.write_text(f"# clients\n{first_line}\n{second_line}\n")
    async with running_daemon(tmp_path, {"AUTH_TOKENS": str(file)}) as daemon:
        for token, expected in ((first, 202), (second, 403), (third, 401), (None, 401)):
            assert await status(daemon, token) == expected
        seen: set[int] = set()

        ended = trio.Event()

        async def post_repeatedly() -> None:
            # Not cancelled: httpx would leave the generator of a half-sent body behind.
            while not ended.is_set():
                seen.add(await status(daemon, first))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(post_repeatedly)
            for _ in range(5):
                file.write_text(f"{first_line}\n{third_line}\n")
                await reload(daemon, "tokens_reloaded")
                assert await status(daemon, third) == 202
                file.write_text(f"{first_line}\n{third_line[:-9]}")  # half-written
                await reload(daemon, "tokens_not_reloaded")
                assert await status(daemon, third) == 202
                file.write_text(f"{first_line}\n")
                await reload(daemon, "tokens_reloaded")
                assert await status(daemon, third) == 401
            ended.set()
        assert seen == {202}
        daemon.signal(signal.SIGTERM)
        assert await daemon.wait() == 0
    shown = daemon.output.decode()
    assert not any(token in shown for token in (first, second, third))
    kept = bytes_in(tmp_path)
    assert not any(token.encode() in kept for token in (first, second, third))


async def test_a_file_that_cannot_be_used_refuses_the_start(tmp_path: Path) -> None:
    """A daemon without tokens would accept everything, or nothing."""
    (tmp_path / "tokens").write_text("shop:a-plain-token\n")
    for command in ("serve", "check"):
        done = await run_command(command, folder=tmp_path, env={"AUTH_TOKENS": "tokens"})
        assert done.returncode == 78
        assert "AUTH_TOKENS: tokens: line 1" in done.stdout + done.stderr
        assert "a-plain-token" not in done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [("a:b",), ("",), ("a", "--streams", "NO")])
async def test_a_name_that_the_file_cannot_have_is_a_usage_error(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """The daemon would refuse the printed line."""
    done = await run_command("token", *arguments, folder=tmp_path)
    assert done.returncode == 2
    assert "is not" in done.stderr


@pytest.mark.parametrize("protected", [True, False])
async def test_an_address_that_is_open_to_all_is_a_warning(
    tmp_path: Path,
    protected: bool,  # noqa: FBT001 - pytest passes it by name
) -> None:
    """An operator would not notice that every machine of the network may post."""
    token, line = await new_token(tmp_path, "shop")
    (tmp_path / "tokens").write_text(line + "\n")
    unix = tmp_path / "s.sock"
    env = {"BIND": f"0.0.0.0:0,127.0.0.1:0,unix:{unix}"}
    env |= {"AUTH_TOKENS": "tokens"} if protected else {}
    async with running_daemon(tmp_path, env) as daemon:
        warnings = daemon.events("open_to_all")
        if protected:
            assert not warnings
            return
        (warning,) = warnings
        assert [text.split(":")[0] for text in warning["addresses"]] == ["0.0.0.0"]  # noqa: S104
        assert "AUTH_TOKENS" in warning["note"]
    assert token
