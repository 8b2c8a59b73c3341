"""What a process has promised with its watermarks, in STATE_DIR.

It is durable before a watermark is written to the store: after a crash, and whatever the clock says
then, no payload gets a time of acceptance that a watermark has passed.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import msgspec

from payloadd.errors import StartError
from payloadd.files import make_folder, sync_folder

if TYPE_CHECKING:
    from pathlib import Path

FILE: Final = "watermarks.json"
_FOLDER_MODE: Final = 0o700
_FILE_MODE: Final = 0o600


@dataclass(frozen=True, slots=True)
class Promise:
    """The watermarks that the store may have."""

    process: str
    """Eight random hex digits that tell this STATE_DIR from all others."""
    until: dict[str, int] = field(default_factory=dict)
    """By stream: the time in milliseconds up to which everything accepted is stored."""
    closed: bool = False
    """Whether they say that nothing is accepted any more."""

    @property
    def floor(self) -> int:
        """The time in milliseconds before which no payload may be accepted any more."""
        return max(self.until.values(), default=0)


_decode: Final = msgspec.json.Decoder(Promise).decode


class WatermarkFile:
    """The file with the promise. All methods block."""

    def __init__(self, state_dir: Path) -> None:
        """Read the file; without one, nothing was promised. Raises StartError."""
        self._path = state_dir / FILE
        try:
            self.promise = _decode(self._path.read_bytes())
        except FileNotFoundError:
            self.promise = Promise(secrets.token_hex(4))
        except (OSError, msgspec.MsgspecError) as error:
            raise StartError(
                f"cannot read {self._path}: {error}; it keeps new payloads behind the watermarks in"
                " the store. Without the file, delete those of this machine, too"
            ) from error

    def write(self, until: dict[str, int], *, closed: bool) -> None:
        """Make a promise durable (fsync(2), rename(2)). Raises OSError."""
        promise = replace(self.promise, until=until, closed=closed)
        make_folder(self._path.parent, _FOLDER_MODE)
        temporary = self._path.with_name(f".{FILE}.tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _FILE_MODE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(promise))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._path)
        sync_folder(self._path.parent)
        self.promise = promise
