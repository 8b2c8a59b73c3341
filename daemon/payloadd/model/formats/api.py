"""The interface of object formats: the jobs of a batch become the bytes of one object.

``daemon/README.md``, "How to add", has the steps for a new format.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from payloadd.model.job import Job


@dataclass(frozen=True, slots=True, eq=False)
class ObjectKind:
    """What the objects of one format have in common, which a store may keep beside the bytes."""

    content_type: str
    """The ``Content-Type`` (RFC 9110, section 8.3)."""
    version: str
    """The name of the format and its version, such as ``ndjson-1``."""
    compression: str | None = None
    """The coding of the whole object (RFC 9110, section 8.4.1), which the suffix of its key names.
    None: the object is not compressed, or only parts within it are."""
    same_bytes: bool = True
    """Whether the same jobs give the same bytes with every version of every library."""


@dataclass(slots=True)
class EncodedObject:
    """The bytes of one object, and its kind.

    The bytes are in ``pieces``, one behind the other: joining the pieces of a large batch would
    need its size in memory once more. Not frozen: to construct a frozen dataclass takes several
    times as long, and there is one instance for each object.
    """

    pieces: Sequence[bytes]
    kind: ObjectKind
    misfits: Mapping[str, int] | None = None
    """By column, the values that do not fit into it; None for a format without columns."""
    size: int = field(init=False)
    """Bytes of all pieces."""

    def __post_init__(self) -> None:
        self.size = sum(map(len, self.pieces))


class ObjectFormat(Protocol):
    """A format of objects; its instances may be used in several threads.

    The same jobs always give the same bytes: a replay after a crash then overwrites an object with
    itself. Where the bytes depend on the version of a library or on settings, ``encoder`` names
    them, and ``kind.same_bytes`` is False: a store is asked for the object before it is replaced.
    """

    @property
    def name(self) -> str:
        """The name in :data:`~payloadd.model.formats.FORMATS`, and in the journal."""

    @property
    def suffix(self) -> str:
        """The end of every key, with its dot; empty if ``KEY_TEMPLATE`` is the whole key."""

    @property
    def kind(self) -> ObjectKind:
        """The kind of every object."""

    @property
    def encoder(self) -> str:
        """The format's version and its library's version; the journal keeps it with a sealed batch.

        Two objects of the same jobs are equal byte for byte if their encoders are equal. A library
        that does not tell its version is named by the version of what brings it, such as Python.
        """

    @property
    def most_in_loop(self) -> int:
        """Bytes of payloads up to which ``encode`` may run in the event loop, not in a thread."""

    @property
    def has_process(self) -> bool:
        """Whether ``encode`` waits for another process, which encodes one batch at a time."""

    def encode(self, jobs: Sequence[Job]) -> EncodedObject:
        """Return the object that holds the payloads of ``jobs`` (at least one), in their order.

        Raises OperatorStoreError if that is not possible now.
        """
        ...
