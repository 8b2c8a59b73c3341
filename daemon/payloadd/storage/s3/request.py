"""A request to S3 before it is signed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from payloadd.model.formats.api import EncodedObject
    from payloadd.storage.s3.confirmation import Glance


@dataclass(frozen=True, eq=False)
class RequestTemplate:
    """The part that many requests share; names of headers are in lower case."""

    method: str
    fixed: Mapping[str, str]
    """The headers that all of them have with the same value."""
    varying: Sequence[str]
    """Names of the headers with a value for each request, sorted, the body's hash included."""
    glance: Glance | None = None
    """Recognizes S3's confirmation of a PUT; None: every answer has to be read."""


class S3Request(NamedTuple):
    """One request, not yet signed."""

    template: RequestTemplate
    key: str
    """The key of the object, with the prefix of the store."""
    values: tuple[bytes, ...]
    """The values of the varying headers, in their order."""
    body: EncodedObject

    def value(self, name: str) -> bytes | None:
        """Return the value of a varying header; None if the request does not have it."""
        names = self.template.varying
        return self.values[names.index(name)] if name in names else None
