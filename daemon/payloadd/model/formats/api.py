"""The interface of object formats: the jobs of a batch become the bytes of one object.

``daemon/README.md``, "How to add", has the steps for a new format.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from payloadd.model.job import Job


@dataclass(slots=True)
class EncodedObject:
    """The bytes of one object, and the two headers that tell a reader how to decode them.

    The bytes are in ``pieces``, one behind the other: joining the pieces of a large batch would
    need its size in memory once more. Not frozen: to construct a frozen dataclass takes several
    times as long, and there is one instance for each object.
    """

    pieces: Sequence[bytes]
    content_type: str
    """The ``Content-Type`` (RFC 9110, section 8.3)."""
    content_encoding: str | None
    """The ``Content-Encoding`` (RFC 9110, section 8.4); None: no compression around the type."""
    size: int = field(init=False)
    """Bytes of all pieces."""

    def __post_init__(self) -> None:
        self.size = sum(map(len, self.pieces))


class ObjectFormat(Protocol):
    """A format of objects; its instances have no state and may be used in several threads.

    The same jobs always give the same bytes: a replay after a crash then overwrites an object with
    itself. Where the bytes depend on the version of a library, ``encoder`` names that version.
    """

    @property
    def name(self) -> str:
        """The value of ``COMPRESSION``, and of the column ``compression`` in the journal."""

    @property
    def suffix(self) -> str:
        """The end of every key, with its dot; empty if ``KEY_TEMPLATE`` is the whole key."""

    @property
    def content_type(self) -> str:
        """The ``Content-Type`` of every object."""

    @property
    def content_encoding(self) -> str | None:
        """The ``Content-Encoding`` of every object, or None."""

    @property
    def encoder(self) -> str:
        """The format's version and its library's version; the journal keeps it with a sealed batch.

        Two objects of the same jobs are equal byte for byte if their encoders are equal. A library
        that does not tell its version is named by the version of what brings it, such as Python.
        """

    @property
    def cpu_bound(self) -> bool:
        """Whether to encode a large batch takes so long that it has to run in a thread."""

    def encode(self, jobs: Sequence[Job]) -> EncodedObject:
        """Return the object that holds the payloads of ``jobs`` (at least one), in their order."""
        ...
