"""Parquet: columns chosen by a schema, and the payload itself; see ``config/parquet_schema.py``.

Objects are encoded by a process of their own (``parquet_process.py``), one at a time. Its bytes
depend on the version of pyarrow and on the settings, which ``Parquet.encoder`` names.
"""

from __future__ import annotations

import hashlib
import threading
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final

import msgspec

from payloadd.child_process import ChildProcess
from payloadd.config.parquet_schema import ParquetSchema, partitions_of
from payloadd.errors import OperatorStoreError
from payloadd.model.formats.api import EncodedObject, ObjectKind
from payloadd.model.formats.ndjson import pieces_of
from payloadd.model.formats.parquet_messages import (
    VERSION,
    EncodeFailure,
    ParquetOptions,
    request_object,
    send_options,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.config.settings import Settings
    from payloadd.model.job import Job

_CONTENT_TYPE: Final = "application/vnd.apache.parquet"
_MODULE: Final = "payloadd.model.formats.parquet_process"
_START_SECONDS: Final = 60.0
_LEAST_SECONDS: Final = 60.0
"""The longest time that the process may take for a small object."""
_SLOWEST: Final = 500_000
"""Bytes that it encodes in a second at least, far less than it does on a slow machine."""


class Parquet:
    """Parquet files; see :class:`~payloadd.model.formats.api.ObjectFormat`.

    The process starts with the first object, or with ``start``, and ends with ``configure``. If it
    ends in between, the batch fails, and the next one starts it again.
    """

    name: Final = "parquet"
    suffix: Final = ".parquet"
    kind: Final = ObjectKind(_CONTENT_TYPE, VERSION, same_bytes=False)
    most_in_loop: Final = 0
    has_process: Final = True

    def __init__(self) -> None:
        """Begin with the options of no settings: the columns that payloadd adds."""
        self._lock = threading.Lock()
        self._process: ChildProcess | None = None
        self._options = ParquetOptions()
        self.encoder = _encoder_of(self._options)
        """The version of the format and of pyarrow, and a hash of the options."""

    def configure(self, settings: Settings | None) -> None:
        """Encode as the settings say from now on; None: as without settings. Ends the process.

        A thread that is encoding gets an error. Blocks until the process has ended.
        """
        process = self._process
        if process is not None:
            process.end()
        options = _options_of(settings)
        with self._lock:
            self._end()
            self._options = options
            self.encoder = _encoder_of(options)

    def start(self) -> None:
        """Start the process, if it does not run. Blocks; raises OperatorStoreError."""
        with self._lock:
            self._started()

    def encode(self, jobs: Sequence[Job]) -> EncodedObject:
        """Return the object of ``jobs`` (at least one). Blocks; raises OperatorStoreError."""
        pieces = pieces_of(jobs)
        with self._lock:
            process = self._started()
            size = sum(map(len, pieces))
            process.socket.settimeout(_LEAST_SECONDS + size / _SLOWEST)
            try:
                answer, content = request_object(process.socket, jobs, pieces)
            except (OSError, EOFError, msgspec.MsgspecError) as error:
                self._end()
                reason = f"the process that encodes Parquet has failed ({error!r})"
                raise OperatorStoreError("ENCODER_FAILED", reason) from error
        if isinstance(answer, EncodeFailure):
            raise OperatorStoreError("ENCODER_FAILED", answer.reason)
        return EncodedObject([content], self.kind, answer.misfits)

    def _started(self) -> ChildProcess:
        """Return the running process. Raises OperatorStoreError."""
        if self._process is not None and self._process.ended:
            self._end()
        if self._process is None:
            self._process = self._new()
        return self._process

    def _new(self) -> ChildProcess:
        """Return a process that is ready. Raises OperatorStoreError."""
        try:
            process = ChildProcess(_MODULE)
        except OSError as error:
            raise OperatorStoreError("ENCODER_FAILED", f"it cannot be started: {error}") from error
        process.socket.settimeout(_START_SECONDS)
        try:
            answer = send_options(process.socket, self._options)
        except (OSError, EOFError, msgspec.MsgspecError) as error:
            answer = EncodeFailure(f"the process that encodes Parquet does not start ({error!r})")
        if isinstance(answer, EncodeFailure):
            process.end()
            raise OperatorStoreError("ENCODER_FAILED", answer.reason)
        return process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()


def _options_of(settings: Settings | None) -> ParquetOptions:
    if settings is None:
        return ParquetOptions()
    return ParquetOptions(
        settings.parquet_schema or ParquetSchema(),
        settings.parquet_sort_by or (),
        partitions_of(settings.key_template),
    )


def _encoder_of(options: ParquetOptions) -> str:
    try:
        library = version("pyarrow")
    except PackageNotFoundError:
        library = "none"
    # In JSON with sorted members: the same options have the same hash in every process.
    text = msgspec.json.encode(options, order="deterministic")
    return f"{VERSION} pyarrow-{library} options-{hashlib.sha256(text).hexdigest()[:12]}"
