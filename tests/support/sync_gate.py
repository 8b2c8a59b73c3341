"""Hold or fail the syncs of this process, and let them happen again: a disk on command.

Every fsync(2) and fdatasync(2) of the process, SQLite's too, asks a thread of the test what to do.
The kernel's filter stays for ever, so use this only in processes that end with the test.
"""

from __future__ import annotations

import errno
import fcntl
import struct
import threading
from contextlib import suppress
from typing import Final

from tests.support.failing_sync import ask_for_syncs

# seccomp_unotify(2): struct seccomp_notif has 80 bytes and begins with the id of the question.
_RECEIVE, _SEND, _SIZE = 0xC0502100, 0xC0182101, 80
_CONTINUE: Final = 1
"""The answer's flag that lets the system call happen."""


class SyncGate:
    """Decides about each sync of this process from its creation on; syncs happen at first."""

    def __init__(self) -> None:
        """Install the filter, for the calling thread and those that it starts. Raises OSError."""
        self._questions = ask_for_syncs()
        self._changed = threading.Condition()
        self._held = self._fails = False
        self.waiting = False
        """Whether a sync is held at the moment."""
        threading.Thread(target=self._answer_all, daemon=True).start()

    def hold(self) -> None:
        """Let no sync end before ``release``."""
        self._set(held=True, fails=False)

    def fail(self) -> None:
        """Let every sync fail with EIO from now on."""
        self._set(held=False, fails=True)

    def release(self) -> None:
        """Let the held sync, and those after it, happen."""
        self._set(held=False, fails=False)

    def _set(self, *, held: bool, fails: bool) -> None:
        with self._changed:
            self._held, self._fails = held, fails
            self._changed.notify_all()

    def _answer_all(self) -> None:
        while True:
            question = bytearray(_SIZE)
            try:
                fcntl.ioctl(self._questions, _RECEIVE, question)
            except InterruptedError:
                continue
            except FileNotFoundError:
                continue  # the thread that asked is gone
            (id_,) = struct.unpack_from("Q", question)
            with self._changed:
                self.waiting = self._held
                self._changed.wait_for(lambda: not self._held)
                self.waiting = False
                error, flags = (-errno.EIO, 0) if self._fails else (0, _CONTINUE)
            with suppress(FileNotFoundError):
                fcntl.ioctl(
                    self._questions, _SEND, bytearray(struct.pack("QqiI", id_, 0, error, flags))
                )
