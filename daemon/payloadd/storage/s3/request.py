"""A request to S3 before it is signed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from payloadd.model.formats.api import EncodedObject


@dataclass(frozen=True, eq=False)
class RequestTemplate:
    """The part that many requests share; names of headers are in lower case."""

    method: str
    fixed: Mapping[str, str]
    """The headers that all of them have with the same value."""
    varying: Sequence[str]
    """Names of the headers with a value for each request, ``x-amz-content-sha256`` included."""
    checksum: str | None = None
    """The header of ``varying`` that S3 repeats to confirm the request."""
    echo: tuple[bytes, bytes] | None = field(init=False, default=None)
    """The name of that header, and the beginning of its line in a response."""

    def __post_init__(self) -> None:
        if self.checksum is not None:
            name = self.checksum.encode("ascii")
            object.__setattr__(self, "echo", (name, b"\r\n%b: " % name))


class S3Request(NamedTuple):
    """One request, not yet signed."""

    template: RequestTemplate
    key: str
    """The key of the object, with the prefix of the store."""
    values: Mapping[bytes, bytes]
    """The values of the varying headers."""
    body: EncodedObject
