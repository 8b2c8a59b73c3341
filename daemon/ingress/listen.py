"""Listening sockets: TCP and Unix, opened, named and closed."""

from __future__ import annotations

import errno
import os
import socket
import stat
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from daemon.errors import StartError
from daemon.logs import get_logger
from daemon.redaction import hide_userinfo_in_sentence
from daemon.values import TcpAddress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.values import Address, UnixAddress

log = get_logger(__name__)

_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.ECONNABORTED}
_EXHAUSTED_PAUSE: Final = 0.1
_ACCEPT_PATIENCE: Final = 0.1

_UNIX_MODE: Final = 0o660
"""Owner and group may connect: the unit's group is how a reverse proxy is let in."""

# Unix listeners whose file is ours to remove. Those that systemd passed are not among them.
_OURS: Final[weakref.WeakSet[trio.SocketListener]] = weakref.WeakSet()


async def open_listeners(addresses: Sequence[Address]) -> list[trio.SocketListener]:
    """Open a listener per socket address; a host name may have several.

    Raises StartError that names the address. The backlog is what the kernel allows
    (net.core.somaxconn): with all slots taken, clients wait in it.
    """
    listeners: list[trio.SocketListener] = []
    for address in addresses:
        try:
            if isinstance(address, TcpAddress):
                listeners += await trio.open_tcp_listeners(address.port, host=address.host)
            else:
                listeners.append(await _open_unix_listener(address))
        except (OSError, UnicodeError) as error:
            for listener in listeners:
                close_listener(listener)
            reason = getattr(error, "strerror", None) or str(error)
            shown = hide_userinfo_in_sentence(str(address))
            raise StartError(f"cannot listen on {shown}: {reason}") from error
    return listeners


def bound_addresses(listeners: Sequence[trio.SocketListener]) -> list[str]:
    """Return where the listeners listen, with the ports that the kernel chose."""
    return [_name(listener.socket) for listener in listeners]


def close_listener(listener: trio.SocketListener) -> None:
    """Close; a Unix socket's file goes first, so that never is a successor's file removed."""
    if listener in _OURS:
        _OURS.discard(listener)
        with suppress(OSError):
            Path(listener.socket.getsockname()).unlink()
    listener.socket.close()


def _name(sock: trio.socket.SocketType) -> str:
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return hide_userinfo_in_sentence(f"unix:{name}")
    return str(TcpAddress(name[0], name[1]))


async def _open_unix_listener(address: UnixAddress) -> trio.SocketListener:
    path = Path(address.path)
    await _remove_stale(path)
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await sock.bind(address.path)
        _set_mode(path)
        sock.listen(0xFFFF)
    except BaseException:
        sock.close()
        raise
    listener = trio.SocketListener(sock)
    _OURS.add(listener)
    return listener


async def _remove_stale(path: Path) -> None:
    """Remove the socket file of a process that is gone; raises OSError if one listens on it."""
    if not _is_socket(path):
        return  # bind says what is wrong with any other file
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            await probe.connect(str(path))
        except ConnectionRefusedError:
            _remove(path)
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    path.unlink()


def _set_mode(path: Path) -> None:
    path.chmod(_UNIX_MODE)


async def next_connection(listener: trio.SocketListener) -> trio.SocketStream | None:
    """Accept; None if the client has left, another process was faster, or resources are short."""
    try:
        with trio.move_on_after(_ACCEPT_PATIENCE):
            return await listener.accept()
    except OSError as error:
        if error.errno not in _EXHAUSTED:
            raise
        log.warning("accept_failed", reason=error.strerror)
        await trio.sleep(_EXHAUSTED_PAUSE)
    return None
