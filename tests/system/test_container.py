"""The steps of systemd/Containerfile, in folders with Debian: no container can be built in a test.

A small interpreter does what each instruction says. The stages begin with Debian's Python instead
of the image that FROM names. The result runs as a container runtime would run it: process 1 of its
own namespaces, read-only, as the user of the image, with a volume, on a network of its own.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.daemon import END_WITHIN, ROOT, START_WITHIN
from tests.support.tools import need_tools
from tests.support.wheel import build_wheel
from tests.system.systemd.tree import WHEELS, tree

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.large, pytest.mark.no_cover]

_IGNORED: Final = {"EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "VOLUME"}
_POST: Final = """
import urllib.request
large = b'["%s"%s]' % (b"x" * 1000, b',"%s"' % (b"x" * 1000) * 4000)
for body in (b"[1, 2]", large):
    request = urllib.request.Request("http://127.0.0.1:8080/v1/payloads", body,
                                     {"Content-Type": "application/json"})
    print(urllib.request.urlopen(request, timeout=30).status)
"""
_ENTER: Final = ("--mount", "--pid", "--net", "--root", "--wd")


@dataclass
class Stage:
    """The image that a stage of the recipe makes: its files and its configuration."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"})
    user: str = "0:0"
    folder: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    arguments: dict[str, str] = field(default_factory=dict)
    """What only the steps of the build see."""
    others: dict[str, str] = field(default_factory=dict)
    """Instructions that the files do not depend on."""

    def run(self, command: str) -> None:
        """Do a RUN; pip takes the wheels of the tree."""
        env = self.env | self.arguments | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": f"/{WHEELS}"}
        settings = [f"--setenv={name}={text}" for name, text in env.items()]
        _run(
            *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--pipe"),
            *(*settings, "--directory", str(self.root), "sh", "-ec", command),
        )

    def copy(self, sources: Path, pattern: str, target: str) -> None:
        """Do a COPY."""
        found = list(sources.glob(pattern.lstrip("/")))
        assert found, pattern
        place = self.root / target.lstrip("/")
        (place if target.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
        _run("cp", "-a", *map(str, found), str(place))

    def do(self, instruction: str, argument: str) -> None:
        """Do any other instruction."""
        match instruction:
            case "RUN":
                self.run(argument)
            case "ARG":
                self.arguments[argument] = ""
            case "ENV":
                self.env |= dict(one.split("=", 1) for one in shlex.split(argument))
            case "USER":
                self.user = argument
            case "WORKDIR":
                self.folder = argument
            case "ENTRYPOINT":
                self.entrypoint = json.loads(argument)
            case "CMD":
                self.command = json.loads(argument)
            case _:
                assert instruction in _IGNORED, instruction
                self.others[instruction] = argument


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Yield instruction and argument of each line of a recipe."""
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, argument = line.partition(" ")
        yield instruction, argument.strip()


def build(recipe: str, context: Path, base: Path, folder: Path, stack: ExitStack) -> Stage:
    """Do what a recipe says; return its last stage."""
    stages: dict[str, Stage] = {}
    stage = None
    for instruction, argument in instructions(recipe):
        if instruction == "FROM":
            image, _, name = argument.partition(" AS ")
            assert image.startswith("docker.io/library/python:3."), image
            stage = Stage(stack.enter_context(layer(base, folder / (name or "last"))))
            stages[name] = stage
            continue
        assert stage is not None
        if instruction == "COPY":
            *options, source, target = argument.split()
            of = [one.removeprefix("--from=") for one in options]
            stage.copy(stages[of[0]].root if of else context, source, target)
        else:
            stage.do(instruction, argument)
    assert stage is not None
    return stage


@contextmanager
def layer(base: Path, folder: Path) -> Iterator[Path]:
    """Mount an overlay over the base, without the environment that the base has for other tests."""
    upper, work, root = folder / "upper", folder / "work", folder / "root"
    for one in (upper, work, root):
        one.mkdir(parents=True)
    options = f"lowerdir={base},upperdir={upper},workdir={work}"
    _run("mount", "-t", "overlay", "-o", options, "overlay", str(root))
    try:
        shutil.rmtree(root / "opt" / "payloadd")
        yield root
    finally:
        _run("umount", "--lazy", str(root))


@dataclass(frozen=True)
class Container:
    """A running container."""

    stage: Stage
    process: subprocess.Popen[bytes]
    pid: int
    """The id of its process 1 on the host."""

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as its user."""
        uid, _, gid = self.stage.user.partition(":")
        enter = ("nsenter", "--target", str(self.pid), *_ENTER, "--setuid", uid, "--setgid", gid)
        return subprocess.run(
            [*enter, "--", *command],
            env=self.stage.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def status(self) -> dict[str, list[str]]:
        """Return /proc/PID/status of process 1: the words of each line by its name."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return {line.split(":")[0]: line.split(":")[1].split() for line in lines}


@contextmanager
def running(stage: Stage, volume: Path, log: Path) -> Iterator[Container]:
    """Run the entry point of an image as a container runtime does."""
    root = shlex.quote(str(stage.root))
    place = stage.root / stage.others["VOLUME"].lstrip("/")
    settings = shlex.join(f"{name}={text}" for name, text in stage.env.items())
    script = f"""
        mount --bind {root} {root}
        mount --bind {shlex.quote(str(volume))} {shlex.quote(str(place))}
        mount --rbind /dev {root}/dev
        mount -t proc proc {root}/proc
        mount -o remount,bind,ro {root}
        python3 -c 'import fcntl, socket, struct
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh", b"lo", 1))' # the loopback device is up
        cd {root}
        exec chroot --userspec={stage.user} . env -i {settings} \\
            sh -c 'cd "$1"; shift; exec "$@"' - {stage.folder} \\
            {shlex.join([*stage.entrypoint, *stage.command])}
    """
    namespaces = ("unshare", "--mount", "--pid", "--net", "--fork", "--kill-child=KILL")
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*namespaces, "sh", "-ec", script],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            _wait_for("listening", log, process)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            yield Container(stage, process, int(children))
        finally:
            process.kill()


def _wait_for(word: str, log: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_WITHIN
    while word not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)


def _run(*command: str) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"


def test_the_recipe_makes_a_container_that_works(tmp_path: Path) -> None:
    """A user would get an image that does not start, writes into itself, or is killed at a stop."""
    need_tools("debootstrap", "systemd-nspawn")
    if os.geteuid() != 0:
        pytest.skip("a container needs root")
    build_wheel(tmp_path / "context" / "dist")
    recipe = (ROOT / "systemd" / "Containerfile").read_text()
    with ExitStack() as stack:
        image = build(recipe, tmp_path / "context", tree(), tmp_path, stack)
        volume = tmp_path / "volume"
        # A new volume gets the owner and the mode of the folder of the image.
        place = image.root / image.others["VOLUME"].lstrip("/")
        shutil.copytree(place, volume)
        shutil.copystat(place, volume)
        os.chown(volume, place.stat().st_uid, place.stat().st_gid)
        with running(image, volume, tmp_path / "log") as container:
            status = container.status()
            assert status["NSpid"][-1] == "1"
            assert {*status["Uid"], *status["Gid"]} == {"10001"}
            health = json.loads(image.others["HEALTHCHECK"].partition("CMD ")[2])
            checked = container.run(*health)
            assert checked.returncode == 0, checked.stderr
            assert container.run("python", "-c", _POST).stdout == "202\n202\n"
            assert "Read-only" in container.run("touch", "/opt/payloadd/x").stderr
            assert container.run("payloadd", "check").returncode == 0
            os.kill(container.pid, getattr(signal, image.others["STOPSIGNAL"]))
            assert container.process.wait(END_WITHIN) == 0, (tmp_path / "log").read_text()
    last = json.loads((tmp_path / "log").read_text().splitlines()[-1])
    assert (last["event"], last["stored"], last["lost"]) == ("drained", 4003, 0)
    assert (volume / "journal.db").stat().st_uid == 10001
    stored = (volume / "payloadd-data" / "objects").rglob("*.ndjson")
    assert sum(path.read_text().count("\n") for path in stored) == 4003


def test_a_health_check_fails_without_a_daemon() -> None:
    """A container that hangs would count as healthy."""
    recipe = dict(instructions((ROOT / "systemd" / "Containerfile").read_text()))
    _, *command = json.loads(recipe["HEALTHCHECK"].partition("CMD ")[2])
    # In a network of its own nothing listens.
    done = subprocess.run(
        ["unshare", "--net", "--map-root-user", "python3", *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "URLError" in done.stderr
