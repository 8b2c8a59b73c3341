"""Opening, naming, refusing and closing the addresses of the server."""

from __future__ import annotations

import stat
from functools import partial
from typing import TYPE_CHECKING

import httpx
import pytest
import trio

from payloadd.config.parsers import TcpAddress, UnixAddress
from payloadd.errors import StartError
from payloadd.ingress.api import make_app
from payloadd.ingress.refusal_log import RefusalLog
from payloadd.ingress.server.listen import close_listener
from payloadd.ingress.server.server import ServerOptions, bound_addresses, open_listeners, serve
from tests.ingress.rig import post, running

if TYPE_CHECKING:
    from pathlib import Path


def close(listeners: list[trio.SocketListener]) -> None:
    """Close all listeners."""
    for listener in listeners:
        close_listener(listener)


async def test_several_addresses_are_opened_and_named() -> None:
    """Of several addresses only one would be served, or the log would not show its port."""
    listeners = await open_listeners([TcpAddress("127.0.0.1", 0), TcpAddress("127.0.0.1", 0)])
    names = bound_addresses(listeners)
    assert len(set(names)) == 2
    for name in names:
        host, _, port = name.rpartition(":")
        assert host == "127.0.0.1"
        await (await trio.open_tcp_stream(host, int(port))).aclose()
    close(listeners)


async def test_an_ipv6_address_is_named_in_brackets() -> None:
    """An IPv6 address in the log could not be copied into a URL."""
    try:
        listeners = await open_listeners([TcpAddress("::1", 0)])
    except StartError:
        pytest.skip("this machine has no IPv6 loopback")
    assert bound_addresses(listeners)[0].startswith("[::1]:")
    close(listeners)


async def test_an_address_in_use_is_named_in_the_error() -> None:
    """An administrator would see a traceback without the address."""
    (taken,) = await open_listeners([TcpAddress("127.0.0.1", 0)])
    port = taken.socket.getsockname()[1]
    with pytest.raises(StartError, match=rf"cannot listen on 127\.0\.0\.1:{port}: Address already"):
        await open_listeners([TcpAddress("127.0.0.1", 0), TcpAddress("127.0.0.1", port)])
    close([taken])


async def test_an_address_of_another_host_is_named_in_the_error() -> None:
    """A typing error in BIND would end in a traceback."""
    with pytest.raises(StartError, match=r"cannot listen on 203\.0\.113\.1:80: "):
        await open_listeners([TcpAddress("203.0.113.1", 80)])


async def test_a_unix_socket_serves_its_group_and_is_removed(tmp_path: Path) -> None:
    """A proxy on the same machine could not connect, or the file would stay after the end."""
    path = tmp_path / "payloadd.sock"
    async with running() as rig:
        listeners = await open_listeners([UnixAddress(str(path))])
        assert bound_addresses(listeners) == [f"unix:{path}"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert rig.submitter is not None
        app = make_app(rig.submitter, rig.health, RefusalLog(), rig.settings)
        start = partial(serve, app, listeners, rig.settings, rig.stop, ServerOptions(5))
        async with trio.open_nursery() as nursery:
            await nursery.start(start)
            transport = httpx.AsyncHTTPTransport(uds=str(path))
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                assert (await client.get("/healthz")).status_code == 200
            rig.stop.set()
    assert not path.exists()


async def test_a_stale_unix_socket_is_replaced(tmp_path: Path) -> None:
    """After a crash the daemon would not start again."""
    path = tmp_path / "payloadd.sock"
    with trio.socket.socket(trio.socket.AF_UNIX) as dead:
        await dead.bind(str(path))
    listeners = await open_listeners([UnixAddress(str(path))])
    async with await trio.open_unix_socket(str(path)):
        pass
    close(listeners)
    close(listeners)  # closing again does nothing


async def test_a_unix_socket_in_use_is_refused(tmp_path: Path) -> None:
    """A second daemon would replace the address of the first."""
    path = UnixAddress(str(tmp_path / "payloadd.sock"))
    listeners = await open_listeners([path])
    with pytest.raises(StartError, match="Address already in use"):
        await open_listeners([path])
    async with await trio.open_unix_socket(path.path):
        pass
    close(listeners)


async def test_another_file_at_the_path_stays(tmp_path: Path) -> None:
    """A typing error in BIND would delete a file of the user."""
    file = tmp_path / "precious"
    file.write_text("data")
    with pytest.raises(StartError, match="Address already in use"):
        await open_listeners([UnixAddress(str(file))])
    assert file.read_text() == "data"
    with pytest.raises(StartError, match="No such file"):
        await open_listeners([UnixAddress(str(tmp_path / "nowhere" / "s"))])


async def test_a_symbolic_link_at_the_path_stays(tmp_path: Path) -> None:
    """The link of another user would make the daemon replace its target, or widen its mode."""
    target, link = tmp_path / "target.sock", tmp_path / "payloadd.sock"
    with trio.socket.socket(trio.socket.AF_UNIX) as dead:
        await dead.bind(str(target))
    target.chmod(0o600)
    link.symlink_to(target)
    with pytest.raises(StartError, match="Address already in use"):
        await open_listeners([UnixAddress(str(link))])
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    link.unlink()
    link.symlink_to(tmp_path / "nothing")
    with pytest.raises(StartError, match="Address already in use"):
        await open_listeners([UnixAddress(str(link))])
    assert not (tmp_path / "nothing").exists()


async def test_the_mode_of_a_link_that_replaces_the_socket_is_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mode of a file that another user chose would be changed."""
    precious, path = tmp_path / "precious", tmp_path / "payloadd.sock"
    precious.touch(mode=0o600)
    with trio.socket.socket(trio.socket.AF_UNIX) as some:
        kind = type(some)
    bind = kind.bind

    async def exchanged(sock: trio.socket.SocketType, address: str) -> None:
        await bind(sock, address)
        path.unlink()
        path.symlink_to(precious)

    monkeypatch.setattr(kind, "bind", exchanged)
    with pytest.raises(StartError, match="cannot listen"):
        await open_listeners([UnixAddress(str(path))])
    assert stat.S_IMODE(precious.stat().st_mode) == 0o600


async def test_a_socket_file_that_changes_during_the_probe_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket of another daemon, started in the same moment, would be removed."""
    path = tmp_path / "payloadd.sock"
    with trio.socket.socket(trio.socket.AF_UNIX) as dead:
        await dead.bind(str(path))
    other = trio.socket.socket(trio.socket.AF_UNIX)
    with other:
        kind = type(other)
        connect = kind.connect

        async def late(sock: trio.socket.SocketType, address: str) -> None:
            refusal = None
            try:
                await connect(sock, address)
            except ConnectionRefusedError as error:
                refusal = error
            path.rename(tmp_path / "old")
            await other.bind(str(path))
            if refusal is not None:
                raise refusal

        monkeypatch.setattr(kind, "connect", late)
        with pytest.raises(StartError, match="Address already in use"):
            await open_listeners([UnixAddress(str(path))])
        assert stat.S_ISSOCK(path.lstat().st_mode)


async def test_the_socket_file_of_a_newer_daemon_stays(tmp_path: Path) -> None:
    """A daemon that ends late would remove the address of the next one."""
    path = tmp_path / "payloadd.sock"
    listeners = await open_listeners([UnixAddress(str(path))])
    path.unlink()
    successor = await open_listeners([UnixAddress(str(path))])
    close(listeners)
    assert path.exists()
    close(successor)
    assert not path.exists()


async def test_a_passed_socket_file_is_not_removed(tmp_path: Path) -> None:
    """The socket file of systemd would be missing after the first restart."""
    path = tmp_path / "passed.sock"
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(str(path))
    sock.listen()
    close([trio.SocketListener(sock)])
    assert path.exists()


async def test_draining_closes_the_address() -> None:
    """A new daemon could not start while the old one drains."""
    async with running() as rig:
        port = rig.listeners[0].socket.getsockname()[1]
        rig.intake.open = trio.Event()
        async with rig.wire() as wire, trio.open_nursery() as nursery:
            await wire.send(post())
            await rig.intake.asked.wait()
            nursery.start_soon(rig.drain)
            await trio.testing.wait_all_tasks_blocked()
            close(await open_listeners([TcpAddress("127.0.0.1", port)]))
            rig.intake.open.set()
            assert (await wire.answer()).status == 202
            await wire.stream.aclose()
