"""The behaviours of the S3 server of ``tests.support.store``, as data.

A behaviour is a value. ``choose`` finds the reaction to one request: conditional behaviours refuse
some requests and let the others through, combined ones choose among others. To add a behaviour: a
frozen dataclass at the end of its section, and a ``case`` in ``choose``.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import trio

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST_SKEW: Final = 900.0
"""Seconds: "RequestTimeTooSkewed" beyond 15 minutes."""


class Request(NamedTuple):
    """A request; names of headers are in lower case."""

    method: str
    path: str
    """The path of the URL, percent-decoded, without its query."""
    headers: Mapping[str, str]
    body: bytes


# ---- Reactions: the result of ``choose`` ----------------------------------------------------


@dataclass(frozen=True)
class Take:
    """Do as S3: keep, find or delete the object."""

    etag: str | None = None
    """The ETag of an answer to a PUT; None: the MD5 of the body."""
    echo: bool = True
    """Whether the answer repeats the checksum headers of the request."""
    conditional: bool = True
    """Whether ``If-None-Match: *`` is respected; otherwise it is ignored."""


@dataclass(frozen=True)
class Answer:
    """Answer with this, whatever the request is; ``keeps`` stores the object nevertheless."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    keeps: bool = False


@dataclass(frozen=True)
class Refusal:
    """Answer with this status and an error document with this code."""

    status: int
    code: str
    message: str = "The test says so."
    headers: Mapping[str, str] = field(default_factory=dict)
    extra: str = ""
    """Further elements of the document, such as ``<Region>eu-west-3</Region>``."""
    keeps: bool = False
    """Whether a PUT is stored although it is refused."""


@dataclass(frozen=True)
class Hang:
    """Never answer; ``keeps`` stores the object before."""

    keeps: bool = False


@dataclass(frozen=True)
class Cut:
    """Reset the connection after ``after`` bytes of the answer of ``Take`` (RST)."""

    after: int = 0
    keeps: bool = False


@dataclass(frozen=True)
class Drip:
    """Send ``answer`` in pieces of ``step`` bytes, with ``pause`` seconds before each."""

    step: int = 1
    pause: float = 0.05
    answer: Take | Answer | Refusal = field(default_factory=Take)


Reaction = Take | Answer | Refusal | Hang | Cut | Drip


ACCESS_DENIED: Final = Refusal(403, "AccessDenied")
SLOW_DOWN: Final = Refusal(503, "SlowDown")
INTERNAL_ERROR: Final = Refusal(500, "InternalError")
PRECONDITION_FAILED: Final = Refusal(412, "PreconditionFailed")
EXPIRED_TOKEN: Final = Refusal(400, "ExpiredToken")
NOT_IMPLEMENTED: Final = Refusal(501, "NotImplemented")


# ---- Conditional behaviours: refuse some requests, and take the others ------------------------


@dataclass(frozen=True, eq=False)
class Throttle:
    """Take ``rate`` PUTs a second, with a token bucket of ``burst``; refuse the others."""

    rate: float
    burst: float
    refusal: Refusal = SLOW_DOWN


@dataclass(frozen=True)
class Skewed:
    """Have a clock that is ``seconds`` ahead, and refuse requests 15 minutes away from it."""

    seconds: float
    says: Literal["both", "date", "document"] = "both"
    """Where the answer names the time: header ``Date``, element ``ServerTime``, or both."""


@dataclass(frozen=True)
class Expired:
    """Refuse requests that are signed with one of these access keys."""

    access_keys: frozenset[str]
    refusal: Refusal = EXPIRED_TOKEN


@dataclass(frozen=True)
class Wants:
    """Refuse PUTs without a header of this name."""

    header: str
    refusal: Refusal


@dataclass(frozen=True)
class Rejects:
    """Refuse requests with a header whose name begins with ``prefix``, and has ``value`` if set."""

    prefix: str
    refusal: Refusal
    value: str = ""


@dataclass(frozen=True)
class Locked:
    """Refuse a PUT for a key that has an object already: object lock, retention."""

    refusal: Refusal = ACCESS_DENIED


# ---- Combined behaviours ----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class InTurn:
    """Use each behaviour once, in order, then the last one for ever."""

    behaviours: tuple[Behaviour, ...]


@dataclass(frozen=True, eq=False)
class Cycle:
    """Use each behaviour once, in order, then begin again: nine errors and one ``Take``."""

    behaviours: tuple[Behaviour, ...]


@dataclass(frozen=True)
class All:
    """Use the first of these behaviours whose reaction is not ``Take``."""

    behaviours: tuple[Behaviour, ...]


@dataclass(frozen=True)
class ByPrefix:
    """Choose by the beginning of the path ``/bucket/key``; the first one that matches."""

    behaviours: Mapping[str, Behaviour]
    otherwise: Behaviour = "take"


@dataclass(frozen=True)
class ByMethod:
    """Choose by the method of the request."""

    behaviours: Mapping[str, Behaviour]
    otherwise: Behaviour = "take"


Name = Literal["take", "hang", "reset", "take and reset", "down", "black hole"]
Behaviour = (
    Reaction
    | (Throttle | Skewed | Expired | Wants | Rejects | Locked)
    | (InTurn | Cycle | All | ByPrefix | ByMethod)
    | Name
)

PORTAL: Final = Answer(200, b"<!doctype html><title>Sign in</title>", {"content-type": "text/html"})
"""A captive portal, or any web server that is no S3."""
TAKE: Final = Take()
_NAMED: Final[Mapping[Name, Reaction]] = {
    "take": TAKE,
    "hang": Hang(),
    "reset": Cut(),
    "take and reset": Cut(keeps=True),
    "down": Hang(),
    "black hole": Hang(),
}


def redirect(status: int, location: str, region: str | None = None) -> Refusal:
    """Return the redirect of S3 to another host, which may name the bucket's region."""
    code = "PermanentRedirect" if status == 301 else "TemporaryRedirect"
    headers = {"location": location}
    return Refusal(
        status, code, headers=headers | ({"x-amz-bucket-region": region} if region else {})
    )


class State:
    """The memory of behaviours: token buckets, and how often a combined one was asked."""

    def __init__(self) -> None:
        self._tokens: dict[Throttle, tuple[float, float]] = {}
        self._asked: dict[InTurn | Cycle, int] = {}

    def take_token(self, bucket: Throttle) -> bool:
        """Take one token out of a bucket; returns whether there was one."""
        now = trio.current_time()
        left, at = self._tokens.get(bucket, (bucket.burst, now))
        left = min(bucket.burst, left + (now - at) * bucket.rate)
        found = left >= 1
        self._tokens[bucket] = (left - found, now)
        return found

    def count(self, behaviour: InTurn | Cycle) -> int:
        """Return how often ``behaviour`` was asked before, and count this time."""
        asked = self._asked.get(behaviour, 0)
        self._asked[behaviour] = asked + 1
        return asked


def choose(  # noqa: PLR0911, C901, PLR0912 - a table, one case for each behaviour
    behaviour: Behaviour, request: Request, state: State, *, known: bool
) -> Reaction:
    """Return the reaction to a request; ``known`` says whether its path has an object."""
    match behaviour:
        case str():
            return _NAMED[behaviour]
        case Throttle():
            refused = request.method == "PUT" and not state.take_token(behaviour)
            return behaviour.refusal if refused else TAKE
        case Skewed():
            return _skew(behaviour, request)
        case Expired():
            access_key = request.headers.get("authorization", "=/").split("=")[1].split("/")[0]
            return behaviour.refusal if access_key in behaviour.access_keys else TAKE
        case Wants():
            missing = request.method == "PUT" and behaviour.header not in request.headers
            return behaviour.refusal if missing else TAKE
        case Rejects():
            found = any(
                name.startswith(behaviour.prefix) and behaviour.value in {"", text}
                for name, text in request.headers.items()
            )
            return behaviour.refusal if found else TAKE
        case Locked():
            return behaviour.refusal if request.method == "PUT" and known else TAKE
        case InTurn(behaviours):
            chosen = behaviours[min(state.count(behaviour), len(behaviours) - 1)]
        case Cycle(behaviours):
            chosen = behaviours[state.count(behaviour) % len(behaviours)]
        case All(behaviours):
            reactions = (choose(one, request, state, known=known) for one in behaviours)
            return next((one for one in reactions if not isinstance(one, Take)), TAKE)
        case ByPrefix(chosen_by):
            matching = (one for start, one in chosen_by.items() if request.path.startswith(start))
            chosen = next(matching, behaviour.otherwise)
        case ByMethod(chosen_by):
            chosen = chosen_by.get(request.method, behaviour.otherwise)
        case _:
            return behaviour
    return choose(chosen, request, state, known=known)


def _skew(behaviour: Skewed, request: Request) -> Reaction:
    now = time.time() + behaviour.seconds
    text = request.headers.get("x-amz-date", "19700101T000000Z")
    signed = datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    if math.fabs(now - signed) <= _MOST_SKEW:
        return TAKE
    there = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Refusal(
        403,
        "RequestTimeTooSkewed",
        headers={} if behaviour.says == "document" else {"date": formatdate(now, usegmt=True)},
        extra="" if behaviour.says == "date" else f"<ServerTime>{there}</ServerTime>",
    )
