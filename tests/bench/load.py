"""The load: wrk and the script it runs.

wrk posts the same body over and over, as fast as the answers come; it is used because
one of its threads costs a small part of what any daemon in Python does with a request.
"""

from __future__ import annotations

import json
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
wrk.path = "/v1/payloads"
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


@dataclass(frozen=True, slots=True)
class Work:
    """What is posted, and how."""

    connections: int = 32
    seconds: int = 10
    payloads_per_post: int = 1
    payload_bytes: int = 200

    def body(self) -> str:
        """Return the body of one POST; every payload in it has ``payload_bytes`` bytes or a few."""
        frame = '{"id":"","text":""}'
        text = "x" * max(self.payload_bytes - len(frame) - 8, 0)
        payloads = [
            json.dumps({"id": f"{index:08x}", "text": text}, separators=(",", ":"))
            for index in range(self.payloads_per_post)
        ]
        return f'{{"version":"1","payloads":[{",".join(payloads)}]}}'


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk saw."""

    answers: int
    refused: int
    """Answers that were not 2xx or 3xx."""
    broken: int
    """Connections and answers that failed or took more than wrk's 2 s."""
    seconds: float
    p50: int
    """Median time of an answer, refusals included, in microseconds."""
    p99: int
    """The same for 99 of 100."""


async def run_wrk(url: str, work: Work, folder: Path) -> Load:
    """Post for ``work.seconds`` to ``url`` and return what came back."""
    script = folder / "post.lua"
    script.write_text(_SCRIPT % {"body": _lua_string(work.body())})
    command = ["wrk", "-t1", f"-c{work.connections}", f"-d{work.seconds}s", "-s", str(script), url]
    with trio.fail_after(work.seconds + _GRACE):
        done = await trio.run_process(command, stdin=b"", capture_stdout=True)
    return Load(**json.loads(done.stdout.decode().splitlines()[-1]))


def _lua_string(text: str) -> str:
    """Return a Lua literal; a level of equals signs that the text lacks keeps it raw."""
    level = "="
    while f"]{level}]" in text:
        level += "="
    return f"[{level}[{text}]{level}]"
