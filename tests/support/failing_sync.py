"""Syncs that fail or wait for a decision, for the rest of this process: a seccomp filter.

Writes reach the page cache, and fsync(2) and fdatasync(2) return EIO, as on a broken disk. A filter
cannot be removed, so use this only in processes that end with the test.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys
from typing import Final

_SYSCALLS: Final = {
    # fsync, fdatasync, seccomp
    "x86_64": (74, 75, 317),
    "aarch64": (82, 83, 277),
}
_PR_SET_NO_NEW_PRIVS: Final = 38
_SET_MODE_FILTER: Final = 1
_ALL_THREADS: Final = 1
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERROR, _ASK = 0x7FFF0000, 0x00050000, 0x7FC00000
_NEW_LISTENER: Final = 8

supported: Final = sys.platform == "linux" and platform.machine() in _SYSCALLS
"""Whether the numbers of the system calls are known for this machine."""


def fail_syncs() -> None:
    """Make every fsync and fdatasync of all threads fail with EIO. Raises OSError."""
    _install(_ERROR | errno.EIO, _ALL_THREADS)


def ask_for_syncs() -> int:
    """Make every fsync and fdatasync of this thread, and of those that it starts, ask.

    Returns the file descriptor for the questions and answers (seccomp_unotify(2)). Raises OSError.
    """
    return _install(_ASK, _NEW_LISTENER)


def _install(action: int, flags: int) -> int:
    """Install the filter with this action for syncs; return the result of seccomp(2)."""
    fsync, fdatasync, seccomp = _SYSCALLS[platform.machine()]
    program = b"".join(
        [
            struct.pack("HBBI", _LOAD, 0, 0, 0),  # the number of the system call
            struct.pack("HBBI", _JUMP_IF_EQUAL, 1, 0, fsync),
            struct.pack("HBBI", _JUMP_IF_EQUAL, 0, 1, fdatasync),
            struct.pack("HBBI", _RETURN, 0, 0, action),
            struct.pack("HBBI", _RETURN, 0, 0, _ALLOW),
        ]
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    description = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    failed = libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    result = libc.syscall(seccomp, _SET_MODE_FILTER, flags, ctypes.c_char_p(description))
    if failed or result < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return int(result)
