"""The load: wrk and the script it runs.

wrk posts the same body over and over, as fast as the answers come (or after a pause); it is
used because one of its threads costs a small part of what any of the daemons does with a
request, and it runs outside of the process tree that is measured.
"""

from __future__ import annotations

import json
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from pathlib import Path

# wrk's own time on top of the load: connecting, and answers that come late.
_GRACE: Final = 30.0

# The last line of wrk's output is the figures as JSON, latencies in microseconds.
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

# Called before each request, returns milliseconds. Pauses are spread evenly, from none to twice
# the mean, so that the connections do not march in step. Past the limit all stay silent until
# wrk's time is over: to stop it would cut off the requests under way.
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
    """What is posted."""

    name: str
    payloads_per_post: int
    payload_bytes: int

    def body(self) -> str:
        """Return the body of one POST; every payload in it has exactly ``payload_bytes``."""
        payloads = ",".join(self.payload(index) for index in range(self.payloads_per_post))
        return f'{{"version":"1","payloads":[{payloads}]}}'

    def payload(self, index: int) -> str:
        """Return one payload of ``payload_bytes``, in the form in which it comes to the store."""
        frame = f'{{"id":"{index:08x}","text":""}}'
        return frame.replace('""', f'"{"x" * (self.payload_bytes - len(frame))}"')


@dataclass(frozen=True, slots=True)
class Drive:
    """How it is posted."""

    connections: int = 32
    seconds: int = 5
    most_posts: int | None = None
    """How many POSTs there are at most, None for as many as go."""
    pause: float = 0.0
    """Seconds, on average, between an answer and the connection's next request."""


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk saw."""

    answers: int
    refused: int
    """Answers that were not 2xx or 3xx."""
    broken: int
    """Connections and answers that failed or took more than 30 s."""
    seconds: float
    p50: int
    """Median time of an answer, refusals included, in microseconds.

    wrk corrects for coordinated omission: an answer that took longer than a connection's mean
    round stands for the requests too that it kept from being made.
    """
    p99: int
    """The same for 99 of 100."""
    cpu_seconds: float
    """What wrk itself took."""

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answers / self.seconds


async def run_wrk(url: str, work: Work, drive: Drive, folder: Path) -> Load:
    """Post to ``url`` as ``drive`` says and return what came back."""
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
    """Return the CPU seconds of children that have been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _script(work: Work, drive: Drive) -> str:
    script = _SCRIPT % {"body": _lua_string(work.body())}
    if drive.most_posts is not None or drive.pause:
        posts = 2**53 if drive.most_posts is None else drive.most_posts
        script += _DELAY % {"posts": posts, "longest": round(drive.pause * 2000)}
    return script


def _lua_string(text: str) -> str:
    """Return a Lua literal; a level of equals signs that the text lacks keeps it raw."""
    level = "="
    while f"]{level}]" in text:
        level += "="
    return f"[{level}[{text}]{level}]"
