"""Open, name and close listening sockets, TCP and Unix. ``accept`` accepts their clients."""

from __future__ import annotations

import errno
import os
import socket
import stat
import weakref
from contextlib import suppress
from ipaddress import ip_address
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
"""Owner and group may connect: a reverse proxy gets access by the group of the systemd unit."""

# Unix listeners whose socket file this process has created, with its device and inode. Sockets
# passed by systemd are not included: their files must stay.
_CREATED_FILES: Final[weakref.WeakKeyDictionary[trio.SocketListener, tuple[int, int]]] = (
    weakref.WeakKeyDictionary()
)


async def open_listeners(addresses: Sequence[Address]) -> list[trio.SocketListener]:
    """Open a listener for each socket address; a host name may have several addresses.

    Raises StartError with the name of the address. The backlog has the largest size that the
    kernel allows (net.core.somaxconn): clients wait there while all slots are taken.
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
    """Return the addresses of the listeners, with the ports that the kernel has chosen."""
    return [_name(listener.socket) for listener in listeners]


def public_addresses(listeners: Sequence[trio.SocketListener]) -> list[str]:
    """Return the addresses of the listeners that other machines may reach."""
    return [
        _name(listener.socket)
        for listener in listeners
        if listener.socket.family != socket.AF_UNIX
        and not ip_address(listener.socket.getsockname()[0].partition("%")[0]).is_loopback
    ]


def close_listener(listener: trio.SocketListener) -> None:
    """Close a listener; closing it again does nothing.

    The file of a Unix socket is removed before the socket is closed. In the other order, the file
    of a new daemon at the same path could be removed.
    """
    created = _CREATED_FILES.pop(listener, None)
    if created is not None:
        with suppress(OSError):
            path = Path(listener.socket.getsockname())
            if _identity(path.lstat()) == created:
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
        # The file gets this mode, less the umask, when it is created: no other user can ever
        # connect.
        os.fchmod(sock.fileno(), _UNIX_MODE)
        await sock.bind(address.path)
        created = _set_mode(path)
        sock.listen(0xFFFF)
    except BaseException:
        sock.close()
        raise
    listener = trio.SocketListener(sock)
    _CREATED_FILES[listener] = created
    return listener


async def _remove_stale(path: Path) -> None:
    """Remove the socket file that a dead process of the same user has left.

    Raises OSError if a process listens on it, or if it belongs to another user. Any other file
    stays, including a symbolic link: bind(2) then fails.
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
    """Return the status of ``path`` without following a symbolic link; None if it is missing."""
    try:
        return path.lstat()
    except FileNotFoundError:
        return None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _remove(path: Path) -> None:
    path.unlink()


def _set_mode(path: Path) -> tuple[int, int]:
    """Allow the group to connect, independent of the umask; return the file's device and inode.

    The file is opened without following a symbolic link that may have replaced it. Its mode is
    changed by its descriptor, which Linux allows only through /proc (open(2), O_PATH).
    """
    file = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(file)
        if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
            raise OSError(errno.EEXIST, "another file has replaced the socket")
        Path(f"/proc/self/fd/{file}").chmod(_UNIX_MODE)
    finally:
        os.close(file)
    return _identity(status)
