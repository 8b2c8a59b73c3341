"""The blocks of README.md, and a session in which the commands of console blocks run.

A session is what a reader does: one folder, the daemon on its default ports, `payloadd` on the
PATH. Ports are replaced by free ones in commands, and back in the output. Before the output is
compared, what differs from run to run is masked on both sides: ids, times, process ids, tokens.
"""

from __future__ import annotations

import difflib
import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self

from tests.support.daemon import END_WITHIN, ROOT, environment
from tests.support.loopback import free_port
from tests.support.senders import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_BLOCK: Final = re.compile(r"^( *)```([a-z]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_COMMAND_SECONDS: Final = 60.0
_MASKS: Final = (
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|\+00:00)", "<time>"),
    (r"(?m)^date: .*$", "date: <time>"),
    (r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "<id>"),
    (r"\bdt=\d{4}-\d\d-\d\d/hour=\d\d\b", "dt=<date>/hour=<hour>"),
    (r"(?m)^(daemon +process) \d+$|(in use by process) \d+", r"\1\2 <process>"),
    (r"(access key \*{4})\w+", r"\1<key>"),
    (r"(?m)\b(written as user) \d+$", r"\1 <user>"),
    (r"(?m)^(oldest seconds +)[\d.]+$", r"\1<seconds>"),
    (r"(?m)^((?:file )?bytes +)\d+$", r"\1<bytes>"),
    (r"(?m)^(token: +)[\w-]{43}$", r"\1<token>"),
    (r"(?m)^(line: +\w+:)[0-9a-f]{64}$", r"\1<digest>"),
    (r"commit (?:[0-9a-f]{7,}(?:-modified)?|not known), Python [\d.]+", "<build>"),
)


@dataclass(frozen=True)
class Block:
    """A fenced block of the README."""

    line: int
    heading: str
    language: str
    text: str

    @property
    def name(self) -> str:
        """Its heading and the beginning of its first line, by which tests name it."""
        return f"{self.heading}: {self.text.splitlines()[0][:40].rstrip()}"

    def steps(self) -> Iterator[tuple[str, str]]:
        """Yield the commands (lines that begin with ``$``) and the output that each has."""
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            lines = part.splitlines(keepends=True)
            last = next(number for number, one in enumerate(lines) if not one.endswith("\\\n"))
            yield "".join(lines[: last + 1]).rstrip("\n"), "".join(lines[last + 1 :])


def blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a Markdown document, those within lists too."""
    found = []
    for match in _BLOCK.finditer(text):
        before = text[: match.start()]
        headings = re.findall(r"^#+ (.+)$", prose(before), re.MULTILINE)
        inner = re.sub(rf"^{match[1]}", "", match[3], flags=re.MULTILINE)
        line = before.count("\n") + 1
        found.append(Block(line, headings[-1] if headings else "", match[2], inner))
    return found


def prose(text: str) -> str:
    """Return a Markdown document without its fenced blocks."""
    return _BLOCK.sub("", text)


def readme_blocks(*languages: str) -> list[Block]:
    """Return the blocks of README.md in these languages, in their order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [block for block in blocks(text) if block.language in languages]


def masked(text: str) -> str:
    """Return ``text`` without what differs from run to run."""
    for pattern, replacement in _MASKS:
        text = re.sub(pattern, replacement, text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def assert_same(expected: str, output: str, where: str) -> None:
    """Fail with a diff if an output is not what the README shows."""
    if masked(expected) != masked(output):
        diff = difflib.unified_diff(
            masked(expected).splitlines(),
            masked(output).splitlines(),
            "README",
            "output",
            "",
            "",
            3,
        )
        raise AssertionError(f"{where}\n" + "\n".join([*diff, "", "unmasked:", output]))


@dataclass
class Session:
    """A folder, and the ports of the daemons that are started in it."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(
        default_factory=lambda: {port: free_port() for port in ("8080", "8081", "5000")}
    )
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        """Put the command on the PATH."""
        programs = self.folder / "programs"
        programs.mkdir(parents=True)
        command = programs / "payloadd"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m payloadd "$@"\n')
        command.chmod(0o755)
        # On a terminal curl shows no progress beside an answer.
        (self.folder / ".curlrc").write_text("no-progress-meter\n")
        return self

    def __exit__(self, *_: object) -> None:
        """Kill what still runs."""
        self._stack.close()

    @property
    def log(self) -> str:
        """The output of the daemon."""
        return self._outwards((self.folder / "log").read_text())

    def run(self, block: Block) -> None:
        """Run the commands of a console block in order and compare their outputs.

        A command that ends with ``&`` starts a daemon; its output is the log, which is not
        compared, and the next command runs once it listens.
        """
        for command, expected in block.steps():
            where = f"README.md:{block.line}: $ {command}"
            if command.endswith("&"):
                self.serve(command.removesuffix("&"))
            else:
                assert_same(expected, self.output(command), where)

    def output(self, command: str) -> str:
        """Run a command to its end; return both outputs."""
        done = subprocess.run(
            ["bash", "-c", self._inwards(command)],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_COMMAND_SECONDS,
            check=False,
        )
        return self._outwards(done.stdout)

    def serve(self, command: str = "payloadd serve") -> None:
        """Start a daemon in the background, and wait until it listens."""
        log = self._stack.enter_context((self.folder / "log").open("wb"))
        process = subprocess.Popen(
            ["bash", "-c", f"exec env {self._inwards(command)}"],
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        self.running.append(process)
        wait_for(lambda: "listening" in self.log or process.poll() is not None)
        assert process.poll() is None, self.log

    def stop(self) -> None:
        """End the daemon that was started last, as Ctrl-C does."""
        process = self.running.pop()
        process.send_signal(signal.SIGINT)
        assert process.wait(END_WITHIN) == 0, self.log

    def _inwards(self, text: str) -> str:
        for port, own in self.ports.items():
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{own}")
        return text

    def _outwards(self, text: str) -> str:
        for port, own in self.ports.items():
            text = text.replace(f"127.0.0.1:{own}", f"127.0.0.1:{port}")
        return text.replace(f"{self.folder}/", "")

    def _environment(self) -> dict[str, str]:
        env = environment(self.folder, LOG_FORMAT="text", **self.settings)
        env["BIND"] = f"127.0.0.1:{self.ports['8080']}"
        env["ADMIN_BIND"] = f"127.0.0.1:{self.ports['8081']}"
        return env | {"PATH": os.pathsep.join([str(self.folder / "programs"), env["PATH"]])}
