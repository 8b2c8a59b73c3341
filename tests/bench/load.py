"""The load: wrk and the script it runs.

wrk posts the same body again and again, as fast as the answers come or after a pause. One of its
threads needs a small part of the CPU time that any of the daemons needs for a request, and it runs
outside of the measured process tree.
"""

from __future__ import annotations

import json
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# Seconds beyond the duration of the load: connecting, and late answers.
_GRACE: Final = 30.0

# The last line of wrk's output has the figures as JSON, latencies in microseconds.
_SCRIPT: Final = """\
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = %(body)s

done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\\n{"answers": %%d, "refused": %%d, "broken": %%d, "seconds": %%f, "p50": %%d, "p99": %%d}\\n',
    summary.requests, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    summary.duration / 1e6, latency:percentile(50), latency:percentile(99)))
end
"""

# Called for each request: the paths or the bodies in turn, so that the requests of a connection
# change them. `arguments` are those of wrk.format.
_IN_TURN: Final = """
local values = {%(values)s}
local requests = {}
init = function()
  for index, value in ipairs(values) do requests[index] = wrk.format(%(arguments)s) end
end
local turn = 0
request = function()
  turn = turn %% #requests + 1
  return requests[turn]
end
"""
_PATH: Final = "nil, value"
_BODY: Final = "nil, nil, nil, value"

# Called before each request, returns milliseconds. Pauses are uniform between 0 and twice the mean,
# so that the connections are not synchronous. Past the limit all connections pause until wrk's time
# is over: stopping wrk would cut off requests under way.
_DELAY: Final = """
local left = %(posts)d
delay = function()
  left = left - 1
  if left < 0 then return 1000000 end
  return math.random(0, %(longest)d)
end
"""


@dataclass(frozen=True, slots=True)
class Work:
    """The requests: payloads a POST, and bytes a payload."""

    name: str
    payloads_per_post: int
    payload_bytes: int
    bodies: int = 1
    """Different bodies, which the requests have in turn; a Drive with ``paths`` has one only."""

    def body(self, number: int = 0) -> str:
        """Return a body, one of ``bodies``, with payloads of exactly ``payload_bytes`` bytes."""
        first = number * self.payloads_per_post
        indexes = range(first, first + self.payloads_per_post)
        return f'{{"version":"1","payloads":[{",".join(map(self.payload, indexes))}]}}'

    def payload(self, index: int) -> str:
        """Return one payload of ``payload_bytes``, as the store gets it."""
        frame = f'{{"id":"{index:08x}","text":""}}'
        return frame.replace('""', f'"{"x" * (self.payload_bytes - len(frame))}"')


@dataclass(frozen=True, slots=True)
class Drive:
    """The load: connections, duration, pauses, paths and token."""

    connections: int = 32
    seconds: int = 5
    most_posts: int | None = None
    """The largest number of POSTs; None for no limit."""
    pause: float = 0.0
    """Mean seconds between an answer and the next request of the connection."""
    paths: tuple[str, ...] = ()
    """Paths that requests use in turn; empty: the one of the URL."""
    token: str | None = None
    """The bearer token of the requests."""


@dataclass(frozen=True, slots=True)
class Load:
    """Results of wrk."""

    answers: int
    refused: int
    """Answers other than 2xx and 3xx."""
    broken: int
    """Connections and answers that failed or took over 30 s."""
    seconds: float
    p50: int
    """Median time of an answer, refusals included, in microseconds.

    wrk corrects for coordinated omission: an answer longer than the mean cycle of a connection
    also counts for the requests that it delayed.
    """
    p99: int
    """The 99th percentile, measured in the same way."""
    cpu_seconds: float
    """CPU time of wrk."""

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.answers / self.seconds


async def run_wrk(url: str, work: Work, drive: Drive, folder: Path) -> Load:
    """Post ``work`` to ``url`` with the load ``drive``; returns the results."""
    script = folder / "post.lua"
    script.write_text(_script(work, drive))
    command = [
        *("wrk", "-t1", f"-c{drive.connections}", f"-d{drive.seconds}s"),
        *("--timeout", "30s", "-s", str(script), url),
    ]
    before = _cpu_of_children()
    with trio.fail_after(drive.seconds + _GRACE):
        done = await trio.run_process(command, stdin=b"", capture_stdout=True)
    seen = json.loads(done.stdout.decode().splitlines()[-1])
    return Load(**seen, cpu_seconds=_cpu_of_children() - before)


def _cpu_of_children() -> float:
    """Return the CPU seconds of ended child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _script(work: Work, drive: Drive) -> str:
    script = _SCRIPT % {"body": _lua_string(work.body())}
    if drive.token is not None:
        script += f'\nwrk.headers["Authorization"] = "Bearer {drive.token}"\n'
    if work.bodies > 1:
        script += _in_turn(map(work.body, range(work.bodies)), _BODY)
    if drive.paths:
        script += _in_turn(drive.paths, _PATH)
    if drive.most_posts is not None or drive.pause:
        posts = 2**53 if drive.most_posts is None else drive.most_posts
        script += _DELAY % {"posts": posts, "longest": round(drive.pause * 2000)}
    return script


def _in_turn(values: Iterable[str], arguments: str) -> str:
    """Return the part of the script that sends one of ``values`` with each request."""
    return _IN_TURN % {"values": ", ".join(map(_lua_string, values)), "arguments": arguments}


def _lua_string(text: str) -> str:
    """Return a raw Lua literal, with a delimiter that the text does not contain."""
    level = "="
    while f"]{level}]" in text:
        level += "="
    return f"[{level}[{text}]{level}]"
