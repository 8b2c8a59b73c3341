"""Listening sockets: TCP and Unix, opened, named and closed. See ``accept`` for their clients."""

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

from payloadd.config.parsers import TcpAddress
from payloadd.errors import StartError
from payloadd.observe.logs import get_logger
from payloadd.redaction import hide_userinfo_in_sentence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.config.parsers import Address, UnixAddress

log = get_logger(__name__)

_UNIX_MODE: Final = 0o660
"""Owner and group may connect: the unit's group is how a reverse proxy is let in."""

# Unix listeners whose file is ours to remove, and which file it is (device and inode). Those
# that systemd passed are not among them.
_OURS: Final[weakref.WeakKeyDictionary[trio.SocketListener, tuple[int, int]]] = (
    weakref.WeakKeyDictionary()
)


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
    ours = _OURS.pop(listener, None)
    if ours is not None:
        with suppress(OSError):
            path = Path(listener.socket.getsockname())
            if _identity(path.lstat()) == ours:
                path.unlink()
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
        # The file has this mode (less the umask) from the start, and is never open to others.
        os.fchmod(sock.fileno(), _UNIX_MODE)
        await sock.bind(address.path)
        made = _set_mode(path)
        sock.listen(0xFFFF)
    except BaseException:
        sock.close()
        raise
    listener = trio.SocketListener(sock)
    _OURS[listener] = made
    return listener


async def _remove_stale(path: Path) -> None:
    """Remove the socket file of a process of ours that is gone.

    Raises OSError if a process listens on it, or if it belongs to another user. Any other file,
    a symbolic link among them, stays: bind refuses it.
    """
    found = _lstat(path)
    if found is None or not stat.S_ISSOCK(found.st_mode):
        return
    if found.st_uid not in (os.geteuid(), 0):
        raise OSError(errno.EEXIST, "the socket file belongs to another user")
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            await probe.connect(str(path))
        except ConnectionRefusedError:
            again = _lstat(path)
            if again is not None and _identity(again) == _identity(found):
                _remove(path)
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _lstat(path: Path) -> os.stat_result | None:
    """Return what is at ``path`` itself, None if there is nothing."""
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _remove(path: Path) -> None:
    path.unlink()


def _set_mode(path: Path) -> tuple[int, int]:
    """Let the group in, whatever the umask; returns which file it was.

    The file is opened without following a symbolic link that was put in its place, and changed
    by its descriptor, which Linux allows by way of /proc alone (open(2), O_PATH).
    """
    file = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(file)
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
            raise OSError(errno.EEXIST, "another file took the place of the socket")
        Path(f"/proc/self/fd/{file}").chmod(_UNIX_MODE)
    finally:
        os.close(file)
    return _identity(status)
