"""Where a redirect of S3 may lead.

Sources: "Request routing", Amazon S3 user guide (a temporary redirect is followed for one request
and not remembered); RFC 9110, section 15.4.8 (307 keeps method and body).

A request has a signature and perhaps a session token. It is sent to no other host than one of the
endpoint's own: any server on the way can send a redirect.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

if TYPE_CHECKING:
    from payloadd.storage.s3.response import S3Response

_FOLLOWED: Final = frozenset({HTTPStatus.TEMPORARY_REDIRECT, HTTPStatus.PERMANENT_REDIRECT})
"""301 and 302 are not followed: many clients turn the PUT into a GET (RFC 9110, section 15.4.3)."""
_AWS: Final = re.compile(
    r"s3(?:-[a-z0-9-]+)?(?:\.dualstack)?(?:\.[a-z]{2,4}(?:-[a-z]+)+-[0-9]{1,2})?"
    r"\.(amazonaws\.com(?:\.cn)?|amazonaws\.eu|api\.aws|c2s\.ic\.gov|sc2s\.sgov\.gov)"
)
"""A host of S3 at AWS. Other hosts in AWS's domains belong to its customers, and some names begin
with a customer's word: ``s3-mine-1.eu-west-1.elb.amazonaws.com`` is a load balancer."""
_PATH: Final = re.compile(rb"/[!-~]*")


class Target(NamedTuple):
    """Where a request is sent."""

    origin: str
    """Scheme, host and port."""
    target: bytes
    """Path and query."""


def location_of(response: S3Response) -> str | None:
    """Return the target of a redirect, or None."""
    is_redirect = 300 <= response.status < 400  # noqa: PLR2004 - RFC 9110, section 15.4
    return response.headers.get("location") if is_redirect else None


def follow(response: S3Response, origin: str, bucket: str, current: str) -> Target | None:
    """Return where a redirect leads; None for one that is not followed.

    ``origin`` and ``bucket`` are those of the configured endpoint, ``current`` is the origin that
    sent the redirect.
    """
    location = location_of(response)
    if location is None or response.status not in _FOLLOWED:
        return None
    try:
        parts = urlsplit(urljoin(f"{current}/", location))
        _ = parts.port
        target = (parts.path or "/").encode("ascii") + (b"?" if parts.query else b"")
        target += parts.query.encode("ascii")
    except ValueError:
        return None
    if not _is_allowed(parts, urlsplit(origin), bucket) or not _PATH.fullmatch(target):
        return None
    return Target(f"{parts.scheme}://{parts.netloc}", target)


def _is_allowed(parts: SplitResult, endpoint: SplitResult, bucket: str) -> bool:
    """Return whether a request may be sent to ``parts``: no other domain, and TLS is kept."""
    if parts.username is not None or parts.scheme not in {endpoint.scheme, "https"}:
        return False
    host = (parts.hostname or "").removeprefix(f"{bucket}.")
    home = (endpoint.hostname or "").removeprefix(f"{bucket}.")
    found, domain = _AWS.fullmatch(host), _AWS.fullmatch(home)
    if domain is not None:
        return found is not None and found[1] == domain[1]
    return host == home or host.endswith(f".{home}")
